"""Registering over HTTP: by upload and by path, and what is refused."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx

from tests.server.answers import CHAT, assert_error, files_of
from tests.tiny import AdapterFactory


async def test_register_by_upload_and_use(
    client: httpx.AsyncClient, make_adapter: AdapterFactory
) -> None:
    form, files = {"name": "new"}, files_of(make_adapter())
    response = await client.post("/admin/adapters?wait=true", data=form, files=files)
    assert response.status_code == 201
    version = response.json()
    assert (version["model"], version["state"]) == ("default/new@1", "ready")
    assert response.headers["location"] == version["location"]
    assert (await client.get(version["location"])).json() == version
    answer = await client.post(CHAT, json={"model": "new"})
    assert answer.json() == {"model": "default/new@1"}
    again = await client.post("/admin/adapters?wait=true", data=form, files=files)
    assert (again.status_code, again.json()["version"]) == (200, 1)


async def test_register_by_path_without_waiting(
    client: httpx.AsyncClient, make_adapter: AdapterFactory
) -> None:
    body = {"name": "new", "source": str(make_adapter()), "metadata": {"team": "a"}}
    response = await client.post("/admin/adapters", json=body)
    assert response.status_code == 202
    async with asyncio.timeout(5):
        while (version := (await client.get(response.json()["location"])).json())[
            "state"
        ] != "ready":
            await asyncio.sleep(0.01)
    assert version["metadata"]["team"] == "a"


async def test_rejected_with_every_reason(
    client: httpx.AsyncClient, make_adapter: AdapterFactory
) -> None:
    adapter = make_adapter(config={"use_dora": True, "bias": "all"})
    response = await client.post(
        "/admin/adapters?wait=true", data={"name": "new"}, files=files_of(adapter)
    )
    error = assert_error(response, 422, "adapter_rejected")
    assert [r["key"] for r in error["reasons"]] == ["use_dora", "bias"]  # type: ignore[attr-defined]
    assert_error(await client.post(CHAT, json={"model": "new"}), 404, "model_not_found")
    shown = (await client.get("/admin/adapters/default/new")).json()
    assert (shown["live"], shown["versions"][0]["state"]) == (None, "rejected")


async def test_registrations_that_cannot_be_understood(
    client: httpx.AsyncClient, make_adapter: AdapterFactory, tmp_path: Path
) -> None:
    source = str(make_adapter())
    bodies = [
        {},
        {"name": "new"},
        {"name": "new", "source": "/etc"},
        {"name": "base", "source": source},
        {"name": "../new", "source": source},
        {"name": "new", "source": source, "surprise": 1},
        {"name": "new", "source": source, "promote": "perhaps"},
        {"name": ["new"], "source": source},
    ]
    for body in bodies:
        assert_error(await client.post("/admin/adapters", json=body), 400, "invalid_request")
    unknown = {"name": "new", "source": source, "tenant": "nobody"}
    assert_error(await client.post("/admin/adapters", json=unknown), 404, "not_found")
    assert_error(await client.post("/admin/adapters", content=b"{"), 400, "invalid_request")
    assert (await client.get("/admin/adapters")).json()["data"] == []
    assert not list((tmp_path / "content" / "staging").iterdir())


async def test_uploads_that_lack_files_or_are_too_large(client: httpx.AsyncClient) -> None:
    form = {"name": "new"}
    one = [("files", ("adapter_config.json", b"{}"))]
    response = await client.post("/admin/adapters", data=form, files=one)
    assert "adapter_model.safetensors is missing" in str(
        assert_error(response, 400, "invalid_request")["message"]
    )
    large = [("files", ("adapter_config.json", b"x" * (3 << 20)))]
    response = await client.post("/admin/adapters", data=form, files=large)
    assert_error(response, 413, "too_large")


async def test_json_that_could_not_be_sent_again(
    client: httpx.AsyncClient, make_adapter: AdapterFactory
) -> None:
    source = str(make_adapter())
    texts = [
        f'{{"name": "new", "source": "{source}", "metadata": {{"x": NaN}}}}',
        f'{{"name": "new", "source": "{source}", "metadata": {{"x": "\\ud800"}}}}',
        f'{{"name": "new", "source": "{source}", "tenant": "\\ud800"}}',
        '{"name": "new", "source": "/nul\\u0000"}',
        "[" * 200_000,
    ]
    for text in texts:
        response = await client.post("/admin/adapters", content=text)
        assert_error(response, 400, "invalid_request")
    assert (await client.get("/admin/adapters")).json()["data"] == []


async def test_bodies_over_the_limit_are_refused_without_a_length_too(
    client: httpx.AsyncClient,
) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b'{"model": "'
        for _ in range(9):
            yield b"x" * (1 << 20)
        yield b'"}'

    for path in (CHAT, "/admin/adapters"):
        headers = {"content-type": "application/json"}
        response = await client.post(path, content=chunks(), headers=headers)
        assert_error(response, 413, "too_large")


async def test_list_in_pages(client: httpx.AsyncClient, make_adapter: AdapterFactory) -> None:
    source = str(make_adapter())
    for name in ("c", "a", "b"):
        await client.post("/admin/adapters?wait=true", json={"name": name, "source": source})
    first = (await client.get("/admin/adapters?limit=2")).json()
    assert [adapter["name"] for adapter in first["data"]] == ["a", "b"]
    rest = (await client.get("/admin/adapters", params={"after": first["next"]})).json()
    assert ([adapter["name"] for adapter in rest["data"]], rest["next"]) == (["c"], None)
    assert_error(await client.get("/admin/adapters?limit=0"), 400, "invalid_request")
