"""Uploads: refused before their bytes are read, bounded in number, size and time; nothing stays."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from adapters_registry.content.adapter_files import ADAPTER_FILES
from adapters_registry.records.tenants import Quota, set_quota
from adapters_registry.registry import Registry
from adapters_registry.sources.hub import find_on_hub
from server.app import build_server
from server.auth import Keys
from server.residency.leases import Leases
from server.settings import Settings
from tests.hub_server import HubServer
from tests.server.answers import assert_error, files_of
from tests.server.fake_engine import FakeEngine
from tests.tiny import AdapterFactory

REGISTER = "/admin/adapters?wait=true"
MIB = 1 << 20
BOUNDARY = "--b"
FORM_TYPE = f"multipart/form-data; boundary={BOUNDARY[2:]}"

ClientOf = Callable[..., AbstractContextManager[httpx.AsyncClient]]


@pytest.fixture(autouse=True)
def nothing_left(registry: Registry) -> Iterator[None]:
    yield
    assert not list((registry.content.root / "staging").iterdir())
    assert not registry.content.budget._reserved


@pytest.fixture
def app(
    registry: Registry, keys: Keys, engine: FakeEngine, leases: Leases, tmp_path: Path
) -> FastAPI:
    settings = Settings(
        data_dir=tmp_path,
        local_roots=(tmp_path,),
        max_adapter_mib=64,
        max_uploads=2,
        upload_seconds=30,
    )
    return build_server(settings, registry, engine, keys=keys, leases=leases).app


def form(fields: dict[str, str], weights: bytes) -> list[bytes]:
    """A multipart body as it arrives: the fields, the configuration, the weights MiB by MiB."""
    parts = [
        f'{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in fields.items()
    ]
    files = [
        f'{BOUNDARY}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
        for name in ADAPTER_FILES
    ]
    pieces = [weights[start : start + MIB] for start in range(0, len(weights), MIB)]
    head = "".join(parts) + files[0] + "{}\r\n" + files[1]
    return [head.encode(), *pieces, f"\r\n{BOUNDARY}--\r\n".encode()]


class Body:
    """A body that counts what was taken of it, and may wait in the middle."""

    def __init__(self, chunks: list[bytes]) -> None:
        self.chunks, self.num_taken = chunks, 0
        self.is_waiting, self.go_on = asyncio.Event(), asyncio.Event()

    def headers(self, *, announced: bool = True) -> dict[str, str]:
        length = {"content-length": str(sum(map(len, self.chunks)))} if announced else {}
        return {"content-type": FORM_TYPE} | length

    async def all(self) -> AsyncIterator[bytes]:
        for chunk in self.chunks:
            self.num_taken += 1
            yield chunk

    async def slowly(self) -> AsyncIterator[bytes]:
        """All but the last chunk, then nothing until `go_on` is set."""
        for chunk in self.chunks[:-1]:
            yield chunk
        self.is_waiting.set()
        await self.go_on.wait()
        yield self.chunks[-1]


async def test_over_the_announced_bytes_the_body_is_not_read(
    client: httpx.AsyncClient, registry: Registry
) -> None:
    registry.apply(set_quota, "default", Quota(adapter_bytes=8 * MIB))
    body = Body(form({"name": "new"}, bytes(32 * MIB)))
    for _ in range(3):
        body.num_taken = 0
        response = await client.post(REGISTER, content=body.all(), headers=body.headers())
        assert_error(response, 429, "insufficient_quota")
        assert body.num_taken < 4, "the form's fields were enough to refuse it"
    assert registry.content.sizes() == {}


async def test_over_the_bytes_without_a_length(
    client: httpx.AsyncClient, registry: Registry
) -> None:
    registry.apply(set_quota, "default", Quota(adapter_bytes=4 * MIB))
    body = Body(form({"name": "new"}, bytes(40 * MIB)))
    headers = body.headers(announced=False)
    response = await client.post(REGISTER, content=body.all(), headers=headers)
    assert_error(response, 429, "insufficient_quota")
    assert body.num_taken < 20
    assert registry.content.sizes() == {}


async def test_a_form_in_an_encoding_that_is_not_utf_8_is_refused(
    client: httpx.AsyncClient,
) -> None:
    for charset in ("undefined", "punycode", "unicode_escape", "utf-16"):
        body = Body(form({"name": "new", "metadata": "\\ud800"}, b""))
        headers = body.headers() | {"content-type": f"{FORM_TYPE}; charset={charset}"}
        response = await client.post(REGISTER, content=body.all(), headers=headers)
        assert charset in str(assert_error(response, 400, "invalid_request")["message"])


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"name": "other"}, 429, "insufficient_quota"),
        ({"name": "No Name"}, 400, "invalid_request"),
        ({"name": "base"}, 400, "invalid_request"),
        ({"name": "new", "tenant": "nobody"}, 404, "not_found"),
        ({"name": "new", "metadata": "{"}, 400, "invalid_request"),
        ({"name": "new", "colour": "red"}, 400, "invalid_request"),
    ],
)
async def test_what_the_fields_say_is_refused_before_the_files(
    client: httpx.AsyncClient,
    registry: Registry,
    make_adapter: AdapterFactory,
    fields: dict[str, str],
    status: int,
    code: str,
) -> None:
    registry.apply(set_quota, "default", Quota(adapters=1))
    files = files_of(make_adapter())
    assert (await client.post(REGISTER, data={"name": "new"}, files=files)).status_code == 201
    body = Body(form(fields, bytes(32 * MIB)))
    response = await client.post(REGISTER, content=body.all(), headers=body.headers())
    assert_error(response, status, code)
    assert body.num_taken < 4


async def test_fields_after_the_files_count_too(
    client: httpx.AsyncClient, make_adapter: AdapterFactory, registry: Registry
) -> None:
    await client.post("/admin/tenants", json={"name": "acme"})
    request = client.build_request(
        "POST", REGISTER, data={"name": "new"}, files=files_of(make_adapter())
    )
    body = b"".join([chunk async for chunk in request.stream])  # type: ignore[union-attr]
    boundary = body[: body.index(b"\r\n")]
    last = b'\r\nContent-Disposition: form-data; name="tenant"\r\n\r\nacme\r\n'
    body = body.removesuffix(b"--\r\n") + last + boundary + b"--\r\n"
    headers = {"content-type": request.headers["content-type"]}
    response = await client.post(REGISTER, content=body, headers=headers)
    assert (response.status_code, response.json()["tenant"]) == (201, "acme")


async def test_slow_uploads_reserve_what_has_come_and_not_what_was_announced(
    client: httpx.AsyncClient, registry: Registry, make_adapter: AdapterFactory
) -> None:
    registry.content.budget.limit_bytes = 70 * MIB
    slow = [Body(form({"name": f"slow{number}"}, bytes(60 * MIB))) for number in range(2)]
    for body in slow:
        body.chunks = [body.chunks[0], body.chunks[1], b"".join(body.chunks[2:])]
    uploads = [
        asyncio.create_task(client.post(REGISTER, content=body.slowly(), headers=body.headers()))
        for body in slow
    ]
    await asyncio.gather(*(body.is_waiting.wait() for body in slow))
    by_path = {"name": "home", "source": str(make_adapter())}
    assert (await client.post(REGISTER, json=by_path)).status_code == 201
    for body in slow:
        body.go_on.set()
    answers = {response.status_code for response in await asyncio.gather(*uploads)}
    assert answers <= {422, 507}, "what has come in the end must fit, or is refused"


async def test_a_tenant_has_few_uploads_at_a_time(
    client: httpx.AsyncClient, registry: Registry, keys: Keys, make_adapter: AdapterFactory
) -> None:
    bodies = [Body(form({"name": f"slow{number}"}, b"x")) for number in range(2)]
    uploads = [
        asyncio.create_task(client.post(REGISTER, content=body.slowly(), headers=body.headers()))
        for body in bodies
    ]
    await asyncio.gather(*(body.is_waiting.wait() for body in bodies))
    response = await client.post(REGISTER, data={"name": "new"}, files=files_of(make_adapter()))
    error = assert_error(response, 429, "rate_limit_exceeded")
    assert "LORAPLEX_MAX_UPLOADS" in str(error["message"])
    assert response.headers["retry-after"]
    await client.post("/admin/tenants", json={"name": "acme"})
    other = {"authorization": f"Bearer {keys.create('acme', ['adapters'])}"}
    response = await client.post(
        REGISTER, data={"name": "new"}, files=files_of(make_adapter()), headers=other
    )
    assert response.status_code == 201, "another tenant's uploads are its own"
    for body in bodies:
        body.go_on.set()
    assert {r.status_code for r in await asyncio.gather(*uploads)} == {422}
    response = await client.post(REGISTER, data={"name": "new"}, files=files_of(make_adapter()))
    assert response.status_code == 201


async def test_an_upload_may_take_so_long_in_all(
    registry: Registry,
    keys: Keys,
    engine: FakeEngine,
    leases: Leases,
    tmp_path: Path,
) -> None:
    settings = Settings(data_dir=tmp_path, upload_seconds=0.2)
    app = build_server(settings, registry, engine, keys=keys, leases=leases).app
    key = keys.create("default", ["admin"])
    body = Body(form({"name": "slow"}, bytes(2 * MIB)))
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app),
        base_url="http://loraplex",
        headers={"authorization": f"Bearer {key}"},
    ) as client:
        response = await client.post(REGISTER, content=body.slowly(), headers=body.headers())
    assert response.status_code == 408
    assert "LORAPLEX_UPLOAD_SECONDS" in response.json()["error"]["message"]


async def test_slow_downloads_keep_no_upload_waiting(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, make_adapter: AdapterFactory
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
        for number in range(20)
    ]
    while not hub.requests:
        await asyncio.sleep(0.01)
    response = await client.post(REGISTER, data={"name": "new"}, files=files_of(make_adapter()))
    assert response.status_code == 201
    await client.post("/admin/tenants", json={"name": "acme"})
    by_path = {"name": "new", "tenant": "acme", "source": str(make_adapter())}
    assert (await client.post(REGISTER, json=by_path)).status_code == 201, "nor another tenant's"
    assert not any(task.done() for task in slow)
    release.set()
    assert {response.status_code for response in await asyncio.gather(*slow)} == {400}
    hub.stop()


async def test_a_staged_registration_happens_once(
    client: httpx.AsyncClient,
    registry: Registry,
    make_adapter: AdapterFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    directories = []
    mkdir = os.mkdir

    def noted(path: str, *arguments: object) -> None:
        directories.append(Path(path).parent)
        mkdir(path, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "mkdir", noted)
    files = files_of(make_adapter())
    assert (await client.post(REGISTER, data={"name": "new"}, files=files)).status_code == 201
    assert directories.count(registry.content.root / "staging") == 1
