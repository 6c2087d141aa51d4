"""Promotion, canaries and the way back, over HTTP."""

from collections import Counter

import httpx
import pytest
import pytest_asyncio

from tests.server.answers import CHAT, assert_error, files_of
from tests.tiny import AdapterFactory

HOME = "/admin/adapters/default/home"
LIVE = f"{HOME}/aliases/live"


@pytest_asyncio.fixture
async def home(client: httpx.AsyncClient, make_adapter: AdapterFactory) -> None:
    """An adapter `home` with three ready versions; the first is live."""
    for seed in (1, 2, 3):
        files = files_of(make_adapter(seed=seed))
        url = "/admin/adapters?wait=true"
        assert (await client.post(url, data={"name": "home"}, files=files)).status_code == 201


def split(*targets: tuple[int, int]) -> dict[str, list[dict[str, int]]]:
    return {"targets": [{"version": version, "weight": weight} for version, weight in targets]}


async def answered_by(client: httpx.AsyncClient, **body: object) -> str:
    answer = await client.post(CHAT, json={"model": "home", **body})
    return str(answer.json()["model"])


async def test_promote_and_roll_back(client: httpx.AsyncClient, home: None) -> None:
    response = await client.put(LIVE, json={"targets": [{"version": 2}]})
    assert response.json() == {
        "alias": "live",
        "targets": [{"version": 2, "weight": 100}],
        "previous": [{"version": 1, "weight": 100}],
        "revision": 2,
    }
    assert await answered_by(client) == "default/home@2"
    assert (await client.post(f"{HOME}/rollback")).status_code == 200
    assert await answered_by(client) == "default/home@1"


async def test_a_split_divides_requests_and_keeps_conversations_together(
    client: httpx.AsyncClient, home: None
) -> None:
    await client.put(LIVE, json=split((2, 50), (1, 50)))
    counts = Counter([await answered_by(client) for _ in range(200)])
    assert 50 < counts["default/home@1"] < 150
    ways: list[dict[str, object]] = [
        {"user": "u"},
        {"prompt_cache_key": "c"},
        {"safety_identifier": "s"},
        {"conversation": {"id": "conv"}},
        {"conversation": "conv"},
        {"metadata": {"user_id": "anthropic"}},
    ]
    for way in ways:
        assert len({await answered_by(client, **way) for _ in range(20)}) == 1
    users = Counter([await answered_by(client, user=f"user {i}") for i in range(200)])
    assert 50 < users["default/home@1"] < 150
    client.headers["x-conversation-id"] = "header"
    assert len({await answered_by(client, user=f"user {i}") for i in range(20)}) == 1


async def test_a_growing_canary_keeps_whom_it_has(client: httpx.AsyncClient, home: None) -> None:
    taken: set[int] = set()
    for weight in (10, 40, 80):
        await client.put(LIVE, json=split((2, weight), (1, 100 - weight)))
        now = {i for i in range(60) if (await answered_by(client, user=f"{i}"))[-1] == "2"}
        assert taken <= now
        taken = now
    assert taken


async def test_etags(client: httpx.AsyncClient, home: None) -> None:
    etag = (await client.get(LIVE)).headers["etag"]

    async def put(condition: str, value: str, alias: str = LIVE) -> httpx.Response:
        return await client.put(alias, json=split((2, 100)), headers={condition: value})

    assert (await put("If-Match", etag)).headers["etag"] != etag
    assert_error(await put("If-Match", etag), 412, "changed_meanwhile")
    assert_error(await put("If-Match", "W/x"), 412, "changed_meanwhile")
    assert (await put("If-Match", "*")).status_code == 200
    following = f"{HOME}/aliases/next"
    assert (await put("If-None-Match", "*", following)).status_code == 200
    assert_error(await put("If-None-Match", "*", following), 412, "changed_meanwhile")


async def test_other_aliases(client: httpx.AsyncClient, home: None) -> None:
    assert_error(await client.get(f"{HOME}/aliases/next"), 404, "not_found")
    await client.put(f"{HOME}/aliases/next", json=split((3, 100)))
    answer = await client.post(CHAT, json={"model": "home@next"})
    assert answer.json() == {"model": "default/home@3"}
    assert (await client.delete(f"{HOME}/aliases/next")).status_code == 204
    answer = await client.post(CHAT, json={"model": "home@next"})
    assert_error(answer, 404, "model_not_found")
    assert_error(await client.delete(LIVE), 409, "conflict")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"targets": []},
        {"targets": [{"version": 9}]},
        {"targets": [{"version": 1, "weight": 50}]},
        {"targets": [{"version": "one"}]},
        {"targets": [{"version": 1}], "force": True},
        split((1, 60), (1, 40)),
    ],
)
async def test_targets_that_cannot_be(
    client: httpx.AsyncClient, home: None, body: dict[str, object]
) -> None:
    assert_error(await client.put(LIVE, json=body), 400, "invalid_request")
    assert await answered_by(client) == "default/home@1"


async def test_retire_and_delete(client: httpx.AsyncClient, home: None) -> None:
    assert (await client.delete(f"{HOME}/versions/3")).status_code == 204
    assert_error(await client.post(CHAT, json={"model": "home@3"}), 404, "model_not_found")
    assert_error(await client.delete(f"{HOME}/versions/1"), 409, "conflict")
    assert_error(await client.delete(HOME), 409, "conflict")
    assert (await client.delete(f"{HOME}?force=true")).status_code == 204
    assert_error(await client.post(CHAT, json={"model": "home"}), 404, "model_not_found")
    assert_error(await client.get(HOME), 404, "not_found")


async def test_a_repeated_post_with_its_key_changes_nothing_more(
    client: httpx.AsyncClient, home: None, make_adapter: AdapterFactory
) -> None:
    await client.put(LIVE, json=split((2, 100)))
    for _ in range(2):
        await client.post(f"{HOME}/rollback", headers={"Idempotency-Key": "back"})
    assert await answered_by(client) == "default/home@1"
    key = {"Idempotency-Key": "once"}
    body = {"name": "other", "source": str(make_adapter(seed=7))}
    versions = [
        (await client.post("/admin/adapters?wait=true", json=body, headers=key)).json()["version"]
        for _ in range(2)
    ]
    assert versions == [1, 1]
    reused = body | {"name": "another"}
    response = await client.post("/admin/adapters", json=reused, headers=key)
    assert_error(response, 409, "conflict")
    long = {"Idempotency-Key": "k" * 256}
    response = await client.post("/admin/adapters", json=body, headers=long)
    assert_error(response, 400, "invalid_request")


async def test_the_audit_trail_names_the_key_and_not_its_secret(
    client: httpx.AsyncClient, home: None
) -> None:
    await client.put(LIVE, json=split((2, 100)))
    page = (await client.get("/admin/audit?limit=1")).json()
    entry = page["data"][0]
    key = client.headers["authorization"].removeprefix("Bearer ")
    _, key_id, secret = key.split("-", 2)
    assert (entry["action"], entry["subject"]) == ("alias.point", "default/home@live")
    assert entry["actor"] == f"key {key_id}"
    assert entry["origin"] == "127.0.0.1"
    assert secret not in str(page)
    older = (await client.get(f"/admin/audit?before={page['next']}")).json()["data"]
    assert [e["id"] for e in older] == list(range(entry["id"] - 1, 0, -1))
