"""On the real engine: a request names an adapter by its source, and the others go on meanwhile."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest

from adapters_registry.check.base import BaseSpec
from adapters_registry.content.adapter_files import ADAPTER_FILES, SIGNATURE_FILE
from server.bundled_base import bundled_base_directory
from tests.adapter_recipe import Recipe
from tests.hub_server import HubServer
from tests.oci_server import Blob, OciServer
from tests.real_engine.running_server import RunningServer
from tests.signing import SigningKey

PROMPT = "The lights in the kitchen are"
POLICY = "/admin/tenants/default/policy"


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    server = HubServer()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def own_server(
    tmp_path_factory: pytest.TempPathFactory, hub: HubServer, oci_server: OciServer
) -> Iterator[RunningServer]:
    """A server that reads the stand-in of the hub, and the registry."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [n for n in os.environ if n.startswith(("HF_", "TRANSFORMERS_"))]:
            patch.delenv(name)
        patch.setenv("HF_ENDPOINT", hub.endpoint)
        flags = ("--max-loras", "2", "--oci-registries", oci_server.url)
        server = RunningServer(tmp_path_factory.mktemp("sources") / "var", *flags)
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.stop()


def files_of(directory: Path, seed: int) -> dict[str, bytes]:
    base = BaseSpec.from_directory(bundled_base_directory(), 16)
    Recipe().make(directory, base, seed)
    return {name: (directory / name).read_bytes() for name in ADAPTER_FILES}


def answer(server: RunningServer, model: str) -> tuple[str, list[float]]:
    given = server.client().completions.create(
        model=model, prompt=PROMPT, max_tokens=8, temperature=0, logprobs=0
    )
    found = given.choices[0].logprobs
    assert found is not None
    return given.model, found.token_logprobs or []


def test_sources_in_requests(
    own_server: RunningServer, hub: HubServer, oci_server: OciServer, tmp_path: Path
) -> None:
    server = own_server
    key = SigningKey(tmp_path, "release")
    on_hub, in_registry = files_of(tmp_path / "a", 1), files_of(tmp_path / "b", 2)
    commit = hub.push("acme/home", on_hub)
    key.sign(tmp_path / "b")
    in_registry[SIGNATURE_FILE] = (tmp_path / "b" / SIGNATURE_FILE).read_bytes()
    oci_server.push(
        "acme/engine",
        [
            Blob(
                content, "application/vnd.cncf.model.weight.v1.raw", {"org.cncf.model.filepath": n}
            )
            for n, content in in_registry.items()
        ],
    )
    model, signed = "hf://acme/home@main", f"oci://{oci_server.host}/acme/engine"
    with pytest.raises(openai.PermissionDeniedError, match="may not name the source"):
        answer(server, model)
    policy = {
        "sources": ["hf://acme/*", f"oci://{oci_server.host}/acme/engine"],
        "signatures": "if_present",
        "trusted_keys": [{"name": "release", "pem": key.pem}],
    }
    assert server.admin("PUT", POLICY, json=policy).status_code == 200
    base = answer(server, "base")
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(answer, server, m) for m in (model, model, "base", signed)]
        first, second, others, of_registry = (future.result() for future in asked)
    assert first[0] == second[0]
    assert others[0] == "base"
    # Beside other requests the last bits of a log-probability differ; alone they don't.
    first, of_registry = answer(server, model), answer(server, signed)
    assert first == answer(server, model)
    assert answer(server, "base") == base, "the base answers as before"
    assert len({str(first[1]), str(of_registry[1]), str(base[1])}) == 3
    name = first[0].partition("@")[0]
    version = server.admin("GET", f"/admin/adapters/{name}/versions/1").json()
    assert version["source"] == f"hf://acme/home@{commit}"
    version = server.admin(
        "GET", f"/admin/adapters/{of_registry[0].partition('@')[0]}/versions/1"
    ).json()
    assert version["metadata"]["signature"]["signer"] == "release"
    assert version["source"].startswith(f"{signed}@sha256:")
    uploaded = server.admin(
        "POST",
        "/admin/adapters?wait=true",
        data={"name": "uploaded"},
        files=[("files", item) for item in on_hub.items()],
    )
    assert uploaded.status_code == 201
    assert answer(server, "uploaded")[1] == first[1], "the same files answer the same"


def test_a_source_that_is_not_there(own_server: RunningServer) -> None:
    own_server.admin("PUT", POLICY, json={"sources": ["hf://acme/*"]})
    with pytest.raises(openai.NotFoundError, match="no such repository"):
        answer(own_server, "hf://acme/nothing")
    with pytest.raises(openai.BadRequestError, match="is not of the form"):
        answer(own_server, "hf://acme/../evil")
    assert httpx.get(f"{own_server.url}/readyz").status_code == 200
