"""What is another tenant's doesn't exist: every route, every kind of caller."""

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from shutil import copytree

import httpx
import pytest
from fastapi import FastAPI

from adapters_registry.records.access.sharing import share_adapter
from adapters_registry.records.catalog import VersionRecord
from adapters_registry.records.tenants import create_tenant
from adapters_registry.registry import Registry
from server.auth import Keys
from server.middleware import authentication
from tests.server.answers import CHAT, assert_error, files_of
from tests.server.callers import make_callers
from tests.tiny import AdapterFactory

Ask = Callable[..., Awaitable[httpx.Response]]


@pytest.fixture(autouse=True)
def tenants(registry: Registry) -> None:
    registry.apply(create_tenant, "acme")
    registry.apply(create_tenant, "other")


@pytest.fixture
def bot(registry: Registry, make_adapter: AdapterFactory) -> VersionRecord:
    """An adapter of the tenant acme."""
    stage = partial(copytree, make_adapter(), dirs_exist_ok=True)
    version, _ = registry.register("acme", "bot", "test", stage)
    return registry.accept(version, registry.check_files(version))


@pytest.fixture
def callers(registry: Registry, keys: Keys) -> dict[str, str]:
    return make_callers(registry, keys)


def with_key(app: FastAPI, key: str) -> Ask:
    async def ask(method: str, path: str, **arguments: object) -> httpx.Response:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://x", headers=headers
        ) as client:
            return await client.request(method, path, **arguments)  # type: ignore[arg-type]

    return ask


def routes(app: FastAPI) -> list[tuple[str, str]]:
    return [
        (method.upper(), path)
        for path, methods in app.openapi()["paths"].items()
        for method in methods
        if path not in authentication.OPEN_PATHS
    ]


ADMINS_ONLY = (
    "/admin/tenants",
    "/admin/keys",
    "/admin/residency",
    "/admin/garbage",
    "/pin",
    "/prefetch",
)


FOREIGN_PARTS = ("/v1/models/", "{tenant}/{name}", "{request_id}")
"""Of paths that name what another tenant has."""


async def test_every_route_for_every_caller(
    app: FastAPI, bot: VersionRecord, callers: dict[str, str]
) -> None:
    """A request that means nothing (no body): what matters is who is let through to be told so."""
    values = {"tenant": "acme", "name": "bot", "number": "1", "alias": "none", "model": "acme/bot"}
    values["key_id"] = values["request_id"] = "none"
    checked = 0
    for method, path in routes(app):
        url = path
        for name, value in values.items():
            url = url.replace(f"{{{name}}}", value)
        assert "{" not in url, path
        if (method, path) == ("DELETE", "/admin/adapters/{tenant}/{name}"):
            continue  # comes to nothing only because an alias points there: tested below
        for caller, key in callers.items():
            status = (await with_key(app, key)(method, url)).status_code
            checked += 1
            admins_only = any(part in path for part in ADMINS_ONLY)
            match caller:
                case "none" | "garbage" | "expired" | "revoked":
                    assert status == 401, (method, path, caller)
                case "own, inference":
                    of_operators = path.startswith("/admin") or path in authentication.LOADING_PATHS
                    assert (status == 403) == of_operators, (method, path)
                case "own":
                    assert (status == 403) == admins_only, (method, path)
                case "other":
                    foreign = any(part in path for part in FOREIGN_PARTS)
                    expected = {403, 404} if admins_only else {404} if foreign else {200, 400}
                    assert status in expected, (method, path)
                case _:
                    assert status not in (401, 403, 500), (method, path)
    assert checked > 150


FOREIGN = [
    ("GET", ""),
    ("DELETE", ""),
    ("DELETE", "?force=true"),
    ("PUT", "/sharing"),
    ("PUT", "/suspension"),
    ("DELETE", "/suspension"),
    ("GET", "/versions/1"),
    ("GET", "/versions/x"),
    ("DELETE", "/versions/1"),
    ("GET", "/aliases/live"),
    ("PUT", "/aliases/live"),
    ("DELETE", "/aliases/live"),
    ("POST", "/rollback"),
    ("POST", "/compose"),
]


@pytest.mark.parametrize(("method", "rest"), FOREIGN)
async def test_foreign_adapters_are_as_those_that_are_not_there(
    app: FastAPI,
    registry: Registry,
    bot: VersionRecord,
    callers: dict[str, str],
    method: str,
    rest: str,
) -> None:
    other = with_key(app, callers["other"])
    there = await other(method, f"/admin/adapters/acme/bot{rest}", json={})
    assert_error(there, 404, "not_found")
    for nothing in ("acme/nope", "nobody/bot"):
        absent = await other(method, f"/admin/adapters/{nothing}{rest}", json={})
        assert (absent.status_code, absent.text.replace(nothing, "acme/bot")) == (404, there.text)
        own = {key: absent.headers[key] for key in ("content-length", "x-request-id")}
        assert dict(absent.headers) == {**there.headers, **own}
        assert int(own["content-length"]) == len(absent.content)
    assert registry.get_version("acme", "bot", 1) == bot


async def test_lists_hold_what_is_ones_own(
    app: FastAPI, bot: VersionRecord, callers: dict[str, str]
) -> None:
    for caller, seen in (("own", 1), ("other", 0), ("admin", 1)):
        ask = with_key(app, callers[caller])
        for query in ("", "?tenant=acme", "?search=bot"):
            listed = (await ask("GET", "/admin/adapters" + query)).json()["data"]
            assert len(listed) == seen, (caller, query)
        models = (await ask("GET", "/v1/models")).json()["data"]
        assert len(models) == 1 + seen
        trail = (await ask("GET", "/admin/audit")).json()["data"]
        assert any(entry["subject"].startswith("acme") for entry in trail) == bool(seen)
    other = with_key(app, callers["other"])
    told = [await other("GET", f"/admin/audit?tenant={name}") for name in ("acme", "nobody")]
    assert told[0].status_code == 404
    assert told[0].text.replace("acme", "nobody") == told[1].text


async def test_registering_for_another_tenant(
    app: FastAPI, registry: Registry, callers: dict[str, str], make_adapter: AdapterFactory
) -> None:
    own, files = with_key(app, callers["own"]), files_of(make_adapter())
    url = "/admin/adapters?wait=true"
    made = await own("POST", url, data={"name": "new"}, files=files)
    assert made.json()["model"] == "acme/new@1"
    told = []
    for tenant in ("other", "nobody"):
        response = await own("POST", url, data={"name": "new", "tenant": tenant}, files=files)
        assert_error(response, 404, "not_found")
        told.append(response.text.replace(tenant, ""))
    assert told[0] == told[1]
    for source in ("s3://bucket/x", "hf://a/b@c", "/etc"):
        response = await own("POST", url, json={"name": "new", "source": source})
        assert_error(response, 403, "insufficient_scope")
    assert set(registry.catalog.adapters) == {("acme", "new")}


async def test_sharing_is_explicit_and_can_be_taken_back(
    app: FastAPI, bot: VersionRecord, callers: dict[str, str]
) -> None:
    own, other = with_key(app, callers["own"]), with_key(app, callers["other"])
    sharing = "/admin/adapters/acme/bot/sharing"
    cases: list[tuple[dict[str, object], list[str], bool]] = [
        ({"shared_with": ["other", "acme"]}, ["other"], True),
        ({}, [], False),
        ({"public": True}, [], True),
        ({"shared_with": ["nobody"]}, ["nobody"], False),
    ]
    for body, shared_with, allowed in cases:
        shared = (await own("PUT", sharing, json=body)).json()
        assert shared["shared_with"] == shared_with
        response = await other("POST", CHAT, json={"model": "acme/bot"})
        assert response.status_code == (200 if allowed else 404)
        listed = (await other("GET", "/v1/models")).json()["data"]
        assert [m["id"] for m in listed[1:]] == (["acme/bot"] if allowed else [])
        # To use is not to manage, nor to see in the lists of what one manages.
        assert (await other("GET", "/admin/adapters/acme/bot")).status_code == 404
        assert (await other("POST", CHAT, json={"model": "bot"})).status_code == 404
    bad: tuple[object, ...] = (["A b"], "other", ["x"] * 1001)
    for tenants in bad:
        response = await own("PUT", sharing, json={"shared_with": tenants})
        assert_error(response, 400, "invalid_request")
    actions = [e["action"] for e in (await own("GET", "/admin/audit")).json()["data"]]
    assert actions.count("adapter.share") == 4


def test_what_is_shared_is_known_after_a_restart(registry: Registry, bot: VersionRecord) -> None:
    registry.apply(share_adapter, "acme", "bot", ["other"], True)
    adapter = registry.get_adapter("acme", "bot")
    assert (adapter.shared_with, adapter.public) == (frozenset({"other"}), True)


async def test_logs_and_metrics_hold_neither_prompts_nor_keys(
    app: FastAPI,
    bot: VersionRecord,
    callers: dict[str, str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.WARNING, "httpx")  # the client's own
    prompt = "Zanzibarische Geheimnisse"
    body = {"model": "bot", "messages": [{"role": "user", "content": prompt}]}
    for key in callers.values():
        ask = with_key(app, key)
        await ask("POST", CHAT, json=body)
        await ask("POST", CHAT, json={**body, "model": prompt})
        await ask("POST", CHAT, content=prompt.encode())
        await ask("POST", "/admin/adapters", json={"name": prompt})
        await ask("GET", f"/v1/models/{prompt}")
    metrics = (await with_key(app, "")("GET", "/metrics")).text
    assert 'tenant="acme"' in metrics
    for text in (caplog.text, metrics):
        assert prompt not in text
        for key in callers.values():
            assert not key or key.split("-", 2)[2] not in text
