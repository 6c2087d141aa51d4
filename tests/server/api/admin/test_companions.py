"""What stands beside the weights counts, by whichever way it comes in."""

from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from adapters_registry.content.s3 import Bucket
from adapters_registry.registry import Registry
from adapters_registry.sources.hub import find_on_hub
from server.app import build_server
from server.auth import Keys
from server.residency.leases import Leases
from server.settings import Settings
from tests.hub_server import HubServer
from tests.server.answers import assert_error
from tests.server.fake_engine import FakeEngine
from tests.tiny import AdapterFactory

REGISTER = "/admin/adapters?wait=true"
TEMPLATE = "{% for m in messages %}[INST]{{ m.content }}[/INST]{% endfor %}"
WAYS = ("upload", "path", "hub", "bucket")


@pytest.fixture
def app(
    registry: Registry, keys: Keys, engine: FakeEngine, leases: Leases, tmp_path: Path
) -> FastAPI:
    settings = Settings(data_dir=tmp_path, local_roots=(tmp_path,))
    return build_server(settings, registry, engine, keys=keys, leases=leases).app


@pytest.fixture
def adapter(make_adapter: AdapterFactory) -> Path:
    directory = make_adapter()
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    (directory / "tokenizer_config.json").write_text('{"chat_template": "x"}')
    return directory


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> HubServer:
    hub = HubServer()
    monkeypatch.setattr(
        "adapters_registry.sources.find_on_hub", lambda source: find_on_hub(source, hub.endpoint)
    )
    return hub


async def register(
    client: httpx.AsyncClient, way: str, adapter: Path, hub: HubServer, s3: str
) -> httpx.Response:
    contents = {file.name: file.read_bytes() for file in adapter.iterdir()}
    if way == "upload":
        files = [("files", (name, content)) for name, content in contents.items()]
        return await client.post(REGISTER, data={"name": "own"}, files=files)
    if way == "hub":
        hub.push("acme/own", contents)
    if way == "bucket":
        for name in contents:
            Bucket(s3).upload(adapter / name, name)
    source = {"path": str(adapter), "hub": "hf://acme/own@main", "bucket": s3}[way]
    return await client.post(REGISTER, json={"name": "own", "source": source})


@pytest.mark.parametrize("way", WAYS)
async def test_a_template_is_kept_and_said(
    client: httpx.AsyncClient, registry: Registry, adapter: Path, hub: HubServer, s3: str, way: str
) -> None:
    response = await register(client, way, adapter, hub, s3)
    assert response.status_code == 201, response.text
    version: dict[str, Any] = response.json()
    checked = version["metadata"]["checked"]
    assert len(checked["serving"]["chat_template"]) == 64
    assert any(
        "its own chat template (chat_template.jinja) is used" in w for w in checked["warnings"]
    )
    kept = registry.content.path(version["digest"].removeprefix("sha256:"))
    assert (kept / "chat_template.jinja").read_text() == TEMPLATE
    again = await register(client, way, adapter, hub, s3)
    assert (again.status_code, again.json()["version"]) == (200, 1)
    (adapter / "chat_template.jinja").write_text(TEMPLATE + "more")
    other = await register(client, way, adapter, hub, s3)
    assert (other.status_code, other.json()["version"]) == (201, 2), "other content"


@pytest.mark.parametrize("way", WAYS)
async def test_files_that_are_not_kept_are_named(
    client: httpx.AsyncClient, adapter: Path, hub: HubServer, s3: str, way: str
) -> None:
    for name in ("optimizer.pt", "trainer_state.json", "README.md", ".gitattributes", "LICENSE"):
        (adapter / name).write_text("{}")
    response = await register(client, way, adapter, hub, s3)
    assert response.status_code == 201, response.text
    warnings = response.json()["metadata"]["checked"]["warnings"]
    (line,) = (warning for warning in warnings if "left out" in warning)
    assert line.endswith(": optimizer.pt, trainer_state.json")


@pytest.mark.parametrize("way", WAYS)
async def test_a_template_that_doesnt_compile_is_refused(
    client: httpx.AsyncClient, adapter: Path, hub: HubServer, s3: str, way: str
) -> None:
    (adapter / "chat_template.jinja").write_text("{% for m in messages %}")
    response = await register(client, way, adapter, hub, s3)
    error = assert_error(response, 422, "adapter_rejected")
    assert "bad_chat_template" in {reason["code"] for reason in error["reasons"]}  # type: ignore[attr-defined]
