"""References, the registries that may be asked, and what they are shown."""

from __future__ import annotations

import json
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextvars import copy_context
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event

import pytest

from adapters_registry.content.adapter_files import (
    WEIGHTS_FILE,
)
from adapters_registry.content.stopping import GivenUp, stop_flag
from adapters_registry.errors import SourceRefused, StoreUnavailable
from adapters_registry.sources import Access, find_source
from tests.adapters_registry.sources.oci.packing import (
    MIB,
    content_of,
    packings,
)
from tests.oci_server import PASSWORD, USER, OciServer, program


@pytest.mark.parametrize(
    "source",
    [
        "oci://",
        "oci://host",
        "oci://host/",
        "oci://host/UPPER",
        "oci://host/a/../b",
        "oci://host/a//b",
        "oci://host/a%2f..%2fb",
        "oci://host/a:tag:tag",
        "oci://host/a@main",
        "oci://host/a@sha256:12",
        "oci://host/a@sha256:" + "0" * 64 + "@x",
        "oci://user:secret@host/a",
        "oci://host:port/a",
        "oci://host/a?x=1",
        "oci://host/a#x",
        "oci://hоst/a",  # a Cyrillic o
        "oci://host/a:tag\n",
        "oci://" + "a" * 600 + "/b",
    ],
)
def test_references_that_are_none(source: str) -> None:
    with pytest.raises(SourceRefused, match="is not of the form oci://"):
        find_source(source, Access((), MIB, ("host", "user")))


def test_only_registries_that_are_allowed(oci_server: OciServer) -> None:
    with pytest.raises(SourceRefused, match="set LORAPLEX_OCI_REGISTRIES"):
        find_source(f"oci://{oci_server.host}/a", Access((), MIB))
    for other in ("ghcr.io", "127.0.0.1", "127.0.0.1:1"):
        with pytest.raises(SourceRefused, match="is not among LORAPLEX_OCI_REGISTRIES"):
            find_source(f"oci://{oci_server.host}/a", Access((), MIB, (other,)))


def test_what_is_not_there(oci_server: OciServer, access: Access, repository: str) -> None:
    with pytest.raises(SourceRefused, match=r"no such repository, tag or digest \(v9\)"):
        find_source(f"oci://{oci_server.host}/{repository}:v9", access)
    with pytest.raises(StoreUnavailable, match="cannot be reached"):
        find_source("oci://127.0.0.1:9/a", Access((), MIB, ("http://127.0.0.1:9",)))


def auth_file(directory: Path, host: str, entry: dict[str, str]) -> Path:
    file = directory / "config.json"
    file.write_text(json.dumps({"auths": {host: entry}}))
    return file


def test_a_name_and_a_password(files: dict[str, bytes], tmp_path: Path, staged: Path) -> None:
    if program() is None:
        pytest.skip("there is no registry (Debian's package docker-registry)")
    server = OciServer({"htpasswd": {}})
    try:
        server.push("acme/home", packings(files)["modelpack"][0])
        source = f"oci://{server.host}/acme/home"
        with pytest.raises(SourceRefused, match="entry in LORAPLEX_OCI_AUTH_FILE"):
            find_source(source, Access((), MIB, (server.url,)))
        encoded = b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        for entry in ({"auth": encoded}, {"username": USER, "password": PASSWORD}):
            access = Access((), MIB, (server.url,), auth_file(tmp_path, server.host, entry))
            find_source(source, access)
        find_source(source, access).stage(staged)
        assert content_of(staged) == files
        wrong = auth_file(tmp_path, server.host, {"username": USER, "password": "wrong"})
        with pytest.raises(SourceRefused, match="entry in LORAPLEX_OCI_AUTH_FILE"):
            find_source(source, Access((), MIB, (server.url,), wrong))
        (tmp_path / "config.json").write_text("[]")
        with pytest.raises(StoreUnavailable, match="LORAPLEX_OCI_AUTH_FILE cannot be used"):
            find_source(source, Access((), MIB, (server.url,), wrong))
    finally:
        server.stop()


@pytest.fixture
def token_service() -> Iterator[tuple[str, list[tuple[str, str | None]]]]:
    """A service that gives everybody a token. Its URL, and the requests that it got."""
    requests: list[tuple[str, str | None]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append((self.path, self.headers.get("authorization")))
            body = json.dumps({"token": "a-token"}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/token", requests
    server.shutdown()
    server.server_close()


def test_a_token(
    token_service: tuple[str, list[tuple[str, str | None]]],
    files: dict[str, bytes],
    tmp_path: Path,
    staged: Path,
) -> None:
    if program() is None:
        pytest.skip("there is no registry (Debian's package docker-registry)")
    realm, requests = token_service
    server = OciServer({"silly": {"realm": realm, "service": "a-registry"}})
    try:
        server.push("acme/home", packings(files)["modelpack"][0])
        entry = {"username": USER, "password": PASSWORD}
        access = Access((), MIB, (server.url,), auth_file(tmp_path, server.host, entry))
        find_source(f"oci://{server.host}/acme/home", access).stage(staged)
        assert content_of(staged) == files
        path, authorization = requests[0]
        assert path == "/token?scope=repository%3Aacme%2Fhome%3Apull&service=a-registry"
        assert authorization == f"Basic {b64encode(f'{USER}:{PASSWORD}'.encode()).decode()}"
        assert len(requests) == 2, "one token for the manifest, and one for all files"
    finally:
        server.stop()


def test_a_download_that_is_given_up_ends(
    oci_server: OciServer,
    access: Access,
    repository: str,
    files: dict[str, bytes],
    staged: Path,
) -> None:
    oci_server.push(repository, packings(files)["modelpack"][0])
    found, flag = find_source(f"oci://{oci_server.host}/{repository}", access), Event()
    flag.set()
    context = copy_context()
    context.run(stop_flag.set, flag)
    with pytest.raises(GivenUp):
        context.run(found.stage, staged)
    assert not (staged / WEIGHTS_FILE).exists()
