"""Lists of adapters: filters, orders, pages."""

from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from tests.server.answers import assert_error, files_of
from tests.tiny import AdapterFactory

NAMES = ["bot", "cat", "cow", "ant"]


@pytest_asyncio.fixture(autouse=True)
async def adapters(client: httpx.AsyncClient, make_adapter: AdapterFactory) -> None:
    for number, name in enumerate(NAMES):
        for seed in range(number + 1):
            adapter = make_adapter(seed=seed, config={"use_dora": name == "ant"})
            url = "/admin/adapters?wait=true"
            await client.post(url, data={"name": name}, files=files_of(adapter))


async def names(client: httpx.AsyncClient, **query: object) -> list[str]:
    page = (await client.get("/admin/adapters", params=query)).json()  # type: ignore[arg-type]
    return [adapter["name"] for adapter in page["data"]]


async def test_filters(client: httpx.AsyncClient) -> None:
    assert await names(client) == sorted(NAMES)
    assert await names(client, search="c") == ["cat", "cow"]
    assert await names(client, state="rejected") == ["ant"]
    assert await names(client, state="ready", search="o") == ["bot", "cow"]
    assert await names(client, tenant="nobody") == []


@pytest.mark.parametrize(
    ("sort", "expected"),
    [
        ("-name", ["cow", "cat", "bot", "ant"]),
        ("versions", ["bot", "cat", "cow", "ant"]),
        ("-versions", ["ant", "cow", "cat", "bot"]),
        ("created", ["bot", "cat", "cow", "ant"]),
        ("size", ["ant", "bot", "cat", "cow"]),
    ],
)
async def test_orders_and_pages(client: httpx.AsyncClient, sort: str, expected: list[str]) -> None:
    assert await names(client, sort=sort) == expected
    seen: list[str] = []
    after: str | None = ""
    while after is not None:
        query: dict[str, str | int] = {"sort": sort, "limit": 1, "after": after}
        page = (await client.get("/admin/adapters", params=query)).json()
        seen += [adapter["name"] for adapter in page["data"]]
        after = page["next"]
    assert seen == expected


async def test_the_order_by_size_is_of_the_sizes_that_are_shown(
    client: httpx.AsyncClient, make_adapter: AdapterFactory
) -> None:
    small = make_adapter(rank=1)
    form = {"name": "small"}
    await client.post("/admin/adapters?wait=true", data=form, files=files_of(small))
    assert (await client.delete("/admin/adapters/default/cow/versions/1?force=true")).is_success
    assert await names(client, sort="size") == ["ant", "small", "bot", "cat", "cow"]


async def test_queries_that_cannot_be_understood(client: httpx.AsyncClient) -> None:
    for query in ("sort=colour", "state=lost", "limit=0", "limit=1001", "after=%21", "after=e30="):
        response = await client.get(f"/admin/adapters?{query}")
        assert_error(response, 400, "invalid_request")
    created = (await client.get("/admin/adapters?sort=created&limit=1")).json()["next"]
    response = await client.get(f"/admin/adapters?sort=name&after={created}")
    assert_error(response, 400, "invalid_request")


async def test_an_unknown_cursor_of_keys_does_not_begin_anew(client: httpx.AsyncClient) -> None:
    assert_error(await client.get("/admin/keys?after=nonsense"), 400, "invalid_request")


async def test_models_are_sorted_and_ask_no_disk(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path) -> bool:
        raise AssertionError(f"the disk was asked for {self}")

    monkeypatch.setattr(Path, "is_dir", refuse)
    models = (await client.get("/v1/models")).json()["data"]
    assert [model["id"] for model in models] == ["base", "bot", "cat", "cow"]
    assert all(model["adapter"]["tier"] for model in models[1:])
