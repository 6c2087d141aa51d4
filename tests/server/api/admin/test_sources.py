"""Registering from every source, and uploads that are bad: nothing half done."""

import asyncio
import io
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.types import Message

from adapters_registry.content.adapter_files import ADAPTER_FILES, CONFIG_FILE, WEIGHTS_FILE
from adapters_registry.content.s3 import Bucket
from adapters_registry.records.tenants import Quota, set_quota
from adapters_registry.registry import Registry
from adapters_registry.sources.hub import find_on_hub
from server.api.admin import upload
from tests.hub_server import HubServer
from tests.oci_server import Blob, OciServer, tar_of
from tests.server.answers import CHAT, assert_error, files_of
from tests.server.fake_engine import FakeEngine
from tests.tiny import AdapterFactory

REGISTER = "/admin/adapters?wait=true"
pytestmark = pytest.mark.usefixtures("nothing_half_done")


# --- sources ---


async def test_from_a_hub(
    client: httpx.AsyncClient, make_adapter: AdapterFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, adapter = HubServer(), make_adapter()
    monkeypatch.setattr(
        "adapters_registry.sources.find_on_hub",
        lambda source: find_on_hub(source, hub.endpoint),
    )
    commit = hub.push("acme/home", {name: (adapter / name).read_bytes() for name in ADAPTER_FILES})
    response = await client.post(REGISTER, json={"name": "new", "source": "hf://acme/home@main"})
    assert response.status_code == 201
    assert response.json()["source"] == f"hf://acme/home@{commit}"
    assert (await client.post(CHAT, json={"model": "new"})).status_code == 200
    missing = {"name": "new", "source": "hf://acme/away"}
    assert_error(await client.post(REGISTER, json=missing), 400, "invalid_request")
    hub.stop()
    response = await client.post(REGISTER, json={"name": "new", "source": "hf://acme/home@main"})
    assert "can't be fetched" in str(assert_error(response, 503, "store_unavailable")["message"])
    assert response.headers["retry-after"]


async def test_from_a_bucket(
    client: httpx.AsyncClient, make_adapter: AdapterFactory, s3: str
) -> None:
    adapter = make_adapter()
    for name in ADAPTER_FILES:
        Bucket(s3).upload(adapter / name, name)
    response = await client.post(REGISTER, json={"name": "new", "source": s3})
    assert (response.status_code, response.json()["source"]) == (201, s3)
    response = await client.post(REGISTER, json={"name": "new", "source": f"{s3}/empty"})
    assert "is missing" in str(assert_error(response, 400, "invalid_request")["message"])


@pytest.fixture
def registry_allowed(oci_server: OciServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the app read the registry. The settings are read when the app is built."""
    monkeypatch.setenv("LORAPLEX_OCI_REGISTRIES", oci_server.url)


@pytest.mark.usefixtures("registry_allowed")
async def test_from_a_registry(
    client: httpx.AsyncClient,
    make_adapter: AdapterFactory,
    oci_server: OciServer,
    registry: Registry,
) -> None:
    adapter = make_adapter()
    files = {name: (adapter / name).read_bytes() for name in ADAPTER_FILES}
    packed = [
        Blob(tar_of(files, compress=True), "application/vnd.kitops.modelkit.model.v1.tar+gzip")
    ]
    digest = oci_server.push("acme/home", packed, tag="v2")
    asked = {"name": "new", "source": f"oci://{oci_server.host}/acme/home:v2"}
    response = await client.post(REGISTER, json=asked)
    assert response.status_code == 201
    assert response.json()["source"] == f"oci://{oci_server.host}/acme/home@{digest}"
    artifact = response.json()["metadata"]["artifact"]
    assert artifact["manifest"] == digest
    assert (await client.post(CHAT, json={"model": "new"})).status_code == 200
    registry.apply(set_quota, "default", Quota(adapter_bytes=sum(map(len, files.values()))))
    other = make_adapter(seed=1)
    files = {name: (other / name).read_bytes() for name in ADAPTER_FILES}
    oci_server.push("acme/home", [Blob(tar_of(files), packed[0].media_type[:-5])], tag="v2")
    assert_error(await client.post(REGISTER, json=asked), 429, "insufficient_quota")
    elsewhere = asked | {"source": "oci://127.0.0.1:1/acme/home"}
    assert_error(await client.post(REGISTER, json=elsewhere), 400, "invalid_request")


@pytest.mark.parametrize(
    "source",
    [
        "ftp://host/x",
        "oci://x/Y",
        "file:///etc",
        "hf://one",
        "s3://b/../c",
        "hf://a/b@..%2f",
        "//etc",
    ],
)
async def test_sources_that_are_none(client: httpx.AsyncClient, source: str) -> None:
    response = await client.post(REGISTER, json={"name": "new", "source": source})
    assert_error(response, 400, "invalid_request")


async def test_a_slow_source_delays_nobody(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, release = HubServer(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def wait(_: str) -> None:
        asyncio.run_coroutine_threadsafe(release.wait(), loop).result()

    hub.before_answer = wait
    monkeypatch.setattr(
        "adapters_registry.sources.find_on_hub",
        lambda source: find_on_hub(source, hub.endpoint),
    )
    slow = [
        asyncio.create_task(
            client.post(REGISTER, json={"name": f"slow{number}", "source": "hf://acme/slow"})
        )
        for number in range(40)  # more than there are threads of any kind
    ]
    while not hub.requests:
        await asyncio.sleep(0.01)
    assert (await client.get("/readyz")).status_code == 200
    assert (await client.post(CHAT, json={"model": "base"})).status_code == 200
    assert not any(task.done() for task in slow)
    release.set()
    assert {response.status_code for response in await asyncio.gather(*slow)} == {400}
    hub.stop()


# --- bad uploads ---


async def test_an_upload_that_is_cut_off(
    client: httpx.AsyncClient, make_adapter: AdapterFactory, app: FastAPI
) -> None:
    request = client.build_request(
        "POST", REGISTER, data={"name": "new"}, files=files_of(make_adapter())
    )
    body = b"".join([chunk async for chunk in request.stream])  # type: ignore[union-attr]
    for length in (10, len(body) // 2, len(body) - 3):
        headers = {"content-type": request.headers["content-type"]}
        response = await client.post(REGISTER, content=body[:length], headers=headers)
        assert_error(response, 400, "invalid_request")
        answers = await post_and_go_away(app, client, headers, body[:length])
        assert answers in ([], [400])
    assert (await client.get("/admin/adapters")).json()["data"] == []


async def post_and_go_away(
    app: FastAPI, client: httpx.AsyncClient, headers: dict[str, str], body: bytes
) -> list[int]:
    """Send a body's beginning and disconnect, as uvicorn reports it; the answers' statuses."""
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/admin/adapters",
        "raw_path": b"/admin/adapters",
        "query_string": b"wait=true",
        "root_path": "",
        "scheme": "http",
        "http_version": "1.1",
        "server": ("loraplex", 80),
        "client": ("127.0.0.1", 1),
        "headers": [
            (b"content-type", headers["content-type"].encode()),
            (b"content-length", b"100000"),
            (b"authorization", client.headers["authorization"].encode()),
        ],
    }
    messages: Iterator[Message] = iter(
        [{"type": "http.request", "body": body, "more_body": True}, {"type": "http.disconnect"}]
    )
    statuses: list[int] = []

    async def receive() -> Message:
        return next(messages)

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    await app(scope, receive, send)
    return statuses


async def test_a_zip_bomb_is_never_unpacked(client: httpx.AsyncClient) -> None:
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(WEIGHTS_FILE, bytes(200 << 20))
    assert len(bomb.getvalue()) < 1 << 20
    config = ("files", (CONFIG_FILE, b"{}"))
    as_weights = [config, ("files", (WEIGHTS_FILE, bomb.getvalue()))]
    response = await client.post(REGISTER, data={"name": "new"}, files=as_weights)
    reasons = assert_error(response, 422, "adapter_rejected")["reasons"]
    assert [reason["code"] for reason in reasons] == ["weights_unreadable"]  # type: ignore[attr-defined]
    archive_only = [("files", ("adapter.zip", bomb.getvalue()))]
    response = await client.post(REGISTER, data={"name": "new"}, files=archive_only)
    assert "is missing" in str(assert_error(response, 400, "invalid_request")["message"])


async def test_a_header_that_claims_100_gigabytes(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    weights = (100 << 30).to_bytes(8, "little") + b"{}"
    files = [("files", (CONFIG_FILE, b"{}")), ("files", (WEIGHTS_FILE, weights))]
    response = await client.post(REGISTER, data={"name": "new"}, files=files)
    assert_error(response, 422, "adapter_rejected")
    assert engine.loads == []


@pytest.mark.parametrize(
    "filename",
    [
        f"../{WEIGHTS_FILE}",
        f"../../../../tmp/{WEIGHTS_FILE}",
        f"/etc/{WEIGHTS_FILE}",
        WEIGHTS_FILE.replace("a", "а"),
        f"{WEIGHTS_FILE}\u200b",
        f" {WEIGHTS_FILE}",
        WEIGHTS_FILE.upper(),
    ],
)
async def test_file_names_that_look_alike_or_climb(
    client: httpx.AsyncClient, make_adapter: AdapterFactory, filename: str
) -> None:
    config, (_, (_, weights)) = files_of(make_adapter())
    files = [config, ("files", (filename, weights))]
    response = await client.post(REGISTER, data={"name": "new"}, files=files)
    message = str(assert_error(response, 400, "invalid_request")["message"])
    assert f"{WEIGHTS_FILE} is missing" in message


@pytest.mark.parametrize("name", ["../new", "nеw", "new/..", "new\u200b", "NEW", "new\n", "ｎew"])
async def test_names_that_look_alike_or_climb(
    client: httpx.AsyncClient, make_adapter: AdapterFactory, name: str
) -> None:
    response = await client.post(REGISTER, data={"name": name}, files=files_of(make_adapter()))
    assert_error(response, 400, "invalid_request")
    assert (await client.get("/admin/adapters")).json()["data"] == []


async def test_the_same_content_twice(
    client: httpx.AsyncClient, make_adapter: AdapterFactory, registry: Registry
) -> None:
    files = files_of(make_adapter())
    first = await client.post(REGISTER, data={"name": "new"}, files=files)
    again = await client.post(REGISTER, data={"name": "new"}, files=files)
    other = await client.post(REGISTER, data={"name": "other"}, files=files)
    assert (first.status_code, again.status_code, other.status_code) == (201, 200, 201)
    assert again.json() == first.json()
    assert list(registry.content.sizes()) == [first.json()["digest"]]


async def test_an_upload_is_spooled_in_the_data_folder(
    client: httpx.AsyncClient,
    make_adapter: AdapterFactory,
    registry: Registry,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folders: list[Path] = []
    opened = tempfile.NamedTemporaryFile

    def noted(**arguments: Any) -> object:
        folders.append(Path(arguments["dir"]))
        return opened(**arguments)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("something was spooled in the system's temporary folder")

    monkeypatch.setattr(upload, "NamedTemporaryFile", noted)
    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", refuse)
    files = files_of(make_adapter(bend=lambda t: t | {"padding": next(iter(t.values()))}))
    await client.post(REGISTER, data={"name": "new"}, files=files)
    assert len(folders) == 2
    assert {folder.parent for folder in folders} == {registry.content.root / "staging"}
