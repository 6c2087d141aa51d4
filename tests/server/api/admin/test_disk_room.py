"""Registering where the disk has no room, and content that is lost: nothing half done."""

import asyncio
import errno
import os
import sqlite3
from collections.abc import AsyncIterator, Callable

import httpx
import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError
from starlette.datastructures import UploadFile

from adapters_registry.content.adapter_files import WEIGHTS_FILE
from adapters_registry.garbage import collect_garbage
from adapters_registry.registry import Registry
from server.residency.states import FIRST_PAUSE_SECONDS
from tests.server.answers import CHAT, assert_error, files_of
from tests.server.fake_engine import FakeEngine
from tests.tiny import AdapterFactory

REGISTER = "/admin/adapters?wait=true"
pytestmark = pytest.mark.usefixtures("nothing_half_done")


# --- room ---


async def test_over_the_budget(
    client: httpx.AsyncClient,
    make_adapter: AdapterFactory,
    registry: Registry,
    budget: Callable[[int], None],
) -> None:
    files = files_of(make_adapter(seed=1))
    budget(2 * sum(len(data) for _, (_, data) in files))
    assert (await client.post(REGISTER, data={"name": "one"}, files=files)).status_code == 201
    kept = registry.content.sizes()
    again = files_of(make_adapter(seed=2))
    by_path = {"name": "two", "source": str(make_adapter(seed=2))}
    budget(sum(kept.values()) + 100)
    for response in (
        await client.post(REGISTER, data={"name": "two"}, files=again),
        await client.post(REGISTER, json=by_path),
    ):
        error = assert_error(response, 507, "insufficient_storage")
        assert "LORAPLEX_DISK_BUDGET_GIB" in str(error["message"])
    assert registry.content.sizes() == kept
    assert (await client.post(CHAT, json={"model": "one"})).status_code == 200
    # What no version needs any more makes room: the engine never reads a file twice.
    await client.delete("/admin/adapters/default/one?force=true")
    assert (await client.post(REGISTER, json=by_path)).status_code == 201
    assert not registry.content.sizes().keys() & kept


async def test_garbage_makes_room(
    client: httpx.AsyncClient,
    make_adapter: AdapterFactory,
    registry: Registry,
    budget: Callable[[int], None],
) -> None:
    body = {"name": "one", "source": str(make_adapter(seed=1))}
    assert (await client.post(REGISTER, json=body)).status_code == 201
    budget(sum(registry.content.sizes().values()) + 100)
    await client.delete("/admin/adapters/default/one?force=true")
    body = {"name": "two", "source": str(make_adapter(seed=2))}
    assert (await client.post(REGISTER, json=body)).status_code == 201
    assert len(registry.content.sizes()) == 1


@pytest.mark.parametrize("call", ["write", "fsync", "rename", "mkdir"])
async def test_a_full_disk(
    client: httpx.AsyncClient,
    make_adapter: AdapterFactory,
    registry: Registry,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
) -> None:
    old = await client.post(REGISTER, data={"name": "old"}, files=files_of(make_adapter(seed=1)))
    kept = registry.content.sizes()

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    files = files_of(make_adapter(seed=2))
    with monkeypatch.context() as patch:
        if call == "write":
            patch.setattr(UploadFile, "write", fail)
        else:
            patch.setattr(os, call, fail)
        response = await client.post(REGISTER, data={"name": "new"}, files=files)
    error = assert_error(response, 507, "insufficient_storage")
    assert "free space" in str(error["message"])
    assert registry.content.sizes() == kept
    assert (await client.get(old.json()["location"])).json() == old.json()
    assert (await client.get("/admin/adapters/default/new")).status_code == 404
    assert (await client.post(CHAT, json={"model": "old"})).status_code == 200
    response = await client.post(REGISTER, data={"name": "new"}, files=files)
    assert (response.status_code, response.json()["version"]) == (201, 1)


async def test_a_full_disk_under_the_records(
    client: httpx.AsyncClient, make_adapter: AdapterFactory, registry: Registry
) -> None:
    with registry.engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
    registry.engine.dispose()

    def limit(connection: object, _: object) -> None:
        connection.execute(f"PRAGMA max_page_count={pages}")  # type: ignore[attr-defined]

    event.listen(registry.engine, "connect", limit)
    body = {"name": "new", "source": str(make_adapter()), "metadata": {"x": "y" * 16_000}}
    response = await client.post(REGISTER, json=body)
    assert_error(response, 507, "insufficient_storage")
    event.remove(registry.engine, "connect", limit)
    registry.engine.dispose()
    assert (await client.get("/admin/adapters")).json()["data"] == []
    assert (await client.post(REGISTER, json=body)).status_code == 201


async def test_a_check_that_a_full_disk_cut_off_is_taken_up_again(
    client: httpx.AsyncClient,
    make_adapter: AdapterFactory,
    registry: Registry,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        full = sqlite3.OperationalError("database or disk is full")
        full.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise OperationalError("", {}, full)

    files = files_of(make_adapter())
    with monkeypatch.context() as patch:
        patch.setattr(registry, "accept", fail)
        response = await client.post(REGISTER, data={"name": "new"}, files=files)
        assert_error(response, 507, "insufficient_storage")
    response = await client.post(REGISTER, data={"name": "new"}, files=files)
    assert (response.json()["version"], response.json()["state"]) == (1, "ready")


# --- content that is lost ---


async def test_lost_content_is_said_and_spares_the_engine(
    client: httpx.AsyncClient,
    make_adapter: AdapterFactory,
    registry: Registry,
    engine: FakeEngine,
) -> None:
    body = {"name": "new", "source": str(make_adapter())}
    digest = (await client.post(REGISTER, json=body)).json()["digest"]
    weights = registry.content.path(digest) / WEIGHTS_FILE
    weights.chmod(0o644)
    weights.write_bytes(b"bit rot")
    registry.content._sound.clear()
    engine.generation += 1  # as after a restart
    response = await client.post(CHAT, json={"model": "new"})
    error = assert_error(response, 503, "content_unavailable")
    assert "register the same files again" in str(error["message"])
    assert engine.loads == ["default/new@1"], "the canary's, and no other"
    assert (await client.post(REGISTER, json=body)).status_code == 200
    await asyncio.sleep(FIRST_PAUSE_SECONDS)
    assert (await client.post(CHAT, json={"model": "new"})).status_code == 200


async def test_content_may_go_when_its_weights_are_in_memory(
    client: httpx.AsyncClient, make_adapter: AdapterFactory, registry: Registry, engine: FakeEngine
) -> None:
    body = {"name": "new", "source": str(make_adapter(seed=1))}
    digest = (await client.post(REGISTER, json=body)).json()["digest"]
    engine.generation += 1
    loading, engine.load_seconds = client.post(CHAT, json={"model": "new"}), 0.2
    request = asyncio.create_task(loading)
    await asyncio.sleep(0.1)
    await client.delete("/admin/adapters/default/new?force=true")
    assert registry.apply(collect_garbage, registry.content) == {}, "it is being read"
    assert (await request).status_code == 200
    assert list(registry.apply(collect_garbage, registry.content)) == [digest]


async def chunks(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def test_an_upload_without_a_length(
    client: httpx.AsyncClient, make_adapter: AdapterFactory, budget: Callable[[int], None]
) -> None:
    request = client.build_request(
        "POST", REGISTER, data={"name": "new"}, files=files_of(make_adapter())
    )
    body = b"".join([chunk async for chunk in request.stream])  # type: ignore[union-attr]
    headers = {"content-type": request.headers["content-type"]}
    budget(len(body) + 100)
    response = await client.post(REGISTER, content=chunks(body), headers=headers)
    assert_error(response, 507, "insufficient_storage")
    budget(10 << 20)
    response = await client.post(REGISTER, content=chunks(body), headers=headers)
    assert response.status_code == 201
