"""Signatures that are attached to an artefact: found, staged, and verified as a file beside it."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from adapters_registry.content.adapter_files import ADAPTER_FILES, SIGNATURE_FILE, signatures_in
from adapters_registry.errors import SourceRefused, StoreUnavailable
from adapters_registry.sources import Access, find_source
from adapters_registry.trust.policy import SignatureRule, TenantPolicy, TrustedKey
from adapters_registry.trust.signatures import verify_signature
from tests.adapters_registry.sources.oci.packing import MIB, packings
from tests.oci_server import BUNDLE, INDEX, MANIFEST, OciServer
from tests.signing import SigningKey
from tests.tiny import AdapterFactory

COSIGNS = "https://sigstore.dev/cosign/sign/v1"


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    return SigningKey(tmp_path, "release")


@pytest.fixture
def signature(key: SigningKey, make_adapter: AdapterFactory) -> bytes:
    adapter = make_adapter()
    key.sign(adapter)
    signed = (adapter / SIGNATURE_FILE).read_bytes()
    (adapter / SIGNATURE_FILE).unlink()
    return signed


@pytest.fixture
def artifact(oci_server: OciServer, repository: str, files: dict[str, bytes]) -> str:
    """The digest of an artefact with the files that `signature` is over."""
    return oci_server.push(repository, packings(files)["modelpack"][0], tag="v2")


def trusting(key: SigningKey) -> TenantPolicy:
    return TenantPolicy(SignatureRule.REQUIRED, (TrustedKey("release", key.pem),))


def over(predicate: str) -> bytes:
    """A bundle that says what it is over, and is signed by nobody."""
    statement = base64.b64encode(json.dumps({"predicateType": predicate}).encode()).decode()
    return json.dumps({"dsseEnvelope": {"payload": statement}}).encode()


def test_one_that_is_listed_under_a_tag(
    oci_server: OciServer,
    access: Access,
    repository: str,
    artifact: str,
    key: SigningKey,
    signature: bytes,
    staged: Path,
) -> None:
    """As attached where the registry has no referrers API: Debian's has none."""
    oci_server.attach(repository, artifact, b"{}", "application/vnd.cyclonedx+json")
    for other in (over(COSIGNS), b"[]", b'{"dsseEnvelope": 7}'):
        oci_server.attach(repository, artifact, other)
    oci_server.attach(repository, artifact, signature)
    find_source(f"oci://{oci_server.host}/{repository}:v2", access).stage(staged)
    assert [file.read_bytes() for file in signatures_in(staged)] == [signature]
    assert verify_signature(staged, trusting(key)) == key.details


def test_one_that_is_attached_to_an_index_and_another_as_a_layer(
    oci_server: OciServer,
    access: Access,
    repository: str,
    files: dict[str, bytes],
    key: SigningKey,
    signature: bytes,
    tmp_path: Path,
    staged: Path,
) -> None:
    others = files | {SIGNATURE_FILE: b"{}"}
    digest = oci_server.push(repository, packings(others)["modelkit"][0], tag="one")
    entry = {"mediaType": MANIFEST, "digest": digest, "size": 1}
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}
    oci_server.attach(repository, oci_server.push_manifest(repository, "v2", index), signature)
    find_source(f"oci://{oci_server.host}/{repository}:v2", access).stage(staged)
    assert [file.read_bytes() for file in signatures_in(staged)] == [b"{}", signature]
    assert verify_signature(staged, trusting(key))


def test_one_of_another_artefact_is_none(
    oci_server: OciServer,
    access: Access,
    repository: str,
    artifact: str,
    files: dict[str, bytes],
    signature: bytes,
    staged: Path,
) -> None:
    """The list under a tag is written by whoever may push: each entry must name its subject."""
    other = oci_server.push(repository, packings(files)["oras"][0], tag="other")
    attached = oci_server.attach(repository, other, signature)
    entry = {"mediaType": MANIFEST, "digest": attached, "size": 1, "artifactType": BUNDLE}
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}
    oci_server.push_manifest(repository, artifact.replace(":", "-"), index)
    find_source(f"oci://{oci_server.host}/{repository}:v2", access).stage(staged)
    assert sorted(file.name for file in staged.iterdir()) == sorted(ADAPTER_FILES)


class NewerRegistry(ThreadingHTTPServer):
    """Debian's registry with a referrers API in front of it, whose pages have one entry each."""

    def __init__(self, registry: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.registry, self.status = registry, 200
        self.link = "/v2/{repository}/referrers/{digest}?last={last}"
        """The link to the next page."""
        self.num_asked = 0
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: NewerRegistry

    def do_GET(self) -> None:
        path, _, last = self.path.partition("?last=")
        before, is_asked, digest = path.partition("/referrers/")
        if is_asked:
            path = f"{before}/manifests/{digest.replace(':', '-')}"
        elif "/manifests/sha256-" in path:
            path += "-is-not-asked-for"
        asked = {"accept": self.headers["accept"], "accept-encoding": "identity"}
        answer = httpx.get(f"{self.server.registry}{path}", headers=asked)
        status, content = answer.status_code, answer.content
        self.send_response(self.server.status if is_asked else status)
        if is_asked and status == 200:
            self.server.num_asked += 1
            index, page = answer.json(), int(last or 0)
            content = json.dumps(
                index | {"manifests": index["manifests"][page : page + 1]}
            ).encode()
            if page + 1 < len(index["manifests"]):
                repository = before.removeprefix("/v2/")
                link = self.server.link.format(repository=repository, digest=digest, last=page + 1)
                self.send_header("link", f'<{link}>; rel="next"')
        self.send_header("content-type", answer.headers.get("content-type", ""))
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def newer(oci_server: OciServer) -> Iterator[NewerRegistry]:
    server = NewerRegistry(oci_server.url)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_one_that_the_referrers_api_names(
    oci_server: OciServer,
    newer: NewerRegistry,
    repository: str,
    artifact: str,
    key: SigningKey,
    signature: bytes,
    staged: Path,
) -> None:
    oci_server.attach(repository, artifact, signature)
    host = newer.url.removeprefix("http://")
    found = find_source(f"oci://{host}/{repository}:v2", Access((), MIB, (newer.url,)))
    newer.status = 503
    with pytest.raises(StoreUnavailable, match="answered 503: try again"):
        found.stage(staged)
    for file in staged.iterdir():
        file.unlink()
    newer.status = 200
    found.stage(staged)
    assert verify_signature(staged, trusting(key))


@pytest.mark.parametrize(
    "link",
    [
        "/v2/{repository}/referrers/{digest}?last={last}",
        "?last={last}",
        "http://inside.registry.test/v2/{repository}/referrers/{digest}?last={last}",
    ],
)
def test_one_on_a_later_page(
    link: str,
    oci_server: OciServer,
    newer: NewerRegistry,
    repository: str,
    artifact: str,
    key: SigningKey,
    signature: bytes,
    staged: Path,
) -> None:
    """Links are paths, or name a host that only the registry knows; the one we know is asked."""
    for other in (b"[]", over(COSIGNS), signature):
        oci_server.attach(repository, artifact, other)
    newer.link = link
    host = newer.url.removeprefix("http://")
    find_source(f"oci://{host}/{repository}:v2", Access((), MIB, (newer.url,))).stage(staged)
    assert newer.num_asked == 3
    assert verify_signature(staged, trusting(key))


def test_pages_without_end_and_of_other_repositories(
    oci_server: OciServer, newer: NewerRegistry, repository: str, artifact: str, staged: Path
) -> None:
    for number in range(2):
        oci_server.attach(repository, artifact, b"%d" % number, "application/vnd.cyclonedx+json")
    host = newer.url.removeprefix("http://")
    found = find_source(f"oci://{host}/{repository}:v2", Access((), MIB, (newer.url,)))
    newer.link = "?last=0"
    found.stage(staged)
    assert newer.num_asked == 32
    assert sorted(file.name for file in staged.iterdir()) == sorted(ADAPTER_FILES)
    for file in staged.iterdir():
        file.unlink()
    newer.link = "/v2/other/referrers/{digest}?last={last}"
    with pytest.raises(SourceRefused, match="a page of another repository"):
        found.stage(staged)
