"""The playground: its answers are requests like any other, with the session's rights."""

from __future__ import annotations

import httpx
import pytest
import pytest_asyncio

from adapters_registry.records.catalog import VersionRecord
from adapters_registry.records.tenants import Quota, create_tenant, set_quota
from adapters_registry.registry import Registry
from server.auth import Caller, Keys
from server.console.pages.playground import MAX_SUGGESTIONS, suggestions
from server.settings import Settings
from tests.server.console.conftest import Browser
from tests.server.console.crowd import fill
from tests.server.fake_engine import FakeEngine

CHAT = "/console/playground/v1/chat/completions"
BASE = Settings().served_base_name


async def ask(
    browser: Browser, model: str, token: str | None = None, **more: object
) -> httpx.Response:
    """Send a prompt as the page's script does."""
    headers = {"hx-request": "true", "x-csrf-token": browser.token if token is None else token}
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], **more}
    return await browser.client.post(CHAT, json=body, headers=headers)


@pytest_asyncio.fixture
async def tenant(browser: Browser, registry: Registry, keys: Keys) -> Browser:
    """A browser of a tenant that may only ask models."""
    registry.apply(create_tenant, "acme")
    await browser.log_in(keys.create("acme", ["inference"]))
    return browser


async def test_the_base_and_an_adapter_answer(admin: Browser, home: VersionRecord) -> None:
    page = await admin.open("/console/playground?model=home")
    assert page.status_code == 200
    assert 'value="home"' in page.text
    for model, served in ((BASE, None), ("home", "default/home"), ("home@1", "default/home")):
        answer = await ask(admin, model)
        assert answer.status_code == 200
        assert answer.headers.get("x-adapter-id") == served


async def test_an_answer_is_streamed(
    admin: Browser, home: VersionRecord, engine: FakeEngine
) -> None:
    engine.stream_may_end.set()
    answer = await ask(admin, "home", stream=True)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text.startswith("data: default/home@1")
    assert answer.text.endswith("data: [DONE]\n\n")


async def test_the_request_counts_as_any_other(
    tenant: Browser, registry: Registry, keys: Keys
) -> None:
    quota = Quota(requests_per_minute=2)
    registry.apply(set_quota, "acme", quota)
    admin_key = keys.create("default", ["admin"])
    for _ in range(2):
        answer = await ask(tenant, BASE)
        assert answer.status_code == 200
    refused = await ask(tenant, BASE)
    assert refused.status_code == 429
    assert refused.json()["error"]["type"]
    headers = {"authorization": f"Bearer {admin_key}"}
    logged = (await tenant.client.get("/admin/requests", headers=headers)).json()["data"]
    of_chats = [each for each in logged if each["path"] == CHAT]
    assert [each["status"] for each in of_chats] == [429, 200, 200]
    assert {each["tenant"] for each in of_chats} == {"acme"}
    assert of_chats[1]["output_tokens"] == 20
    used = (await tenant.client.get("/admin/usage?tenant=acme", headers=headers)).json()["data"]
    assert used[0]["output_tokens"] == 40


async def test_what_the_caller_may_not_use_does_not_exist(
    tenant: Browser, home: VersionRecord
) -> None:
    refused = await ask(tenant, "default/home")
    assert refused.status_code == 404
    assert "does not exist" in refused.json()["error"]["message"]


async def test_only_a_session_with_its_token_and_scope_is_answered(
    browser: Browser, registry: Registry, keys: Keys
) -> None:
    assert (await browser.client.post(CHAT, json={})).status_code == 303
    registry.apply(create_tenant, "acme")
    await browser.log_in(keys.create("acme", ["adapters"]))
    assert (await ask(browser, BASE)).status_code == 403
    assert "Playground" not in (await browser.open("/console/adapters")).text
    await browser.log_in(keys.create("acme", ["inference"]))
    assert (await ask(browser, BASE)).status_code == 200
    assert (await ask(browser, BASE, token="0" * 64)).status_code == 403


@pytest.mark.parametrize("path", ["/console/playground/v1/messages", "/console/playground/admin"])
async def test_nothing_else_is_below_the_page(admin: Browser, path: str) -> None:
    headers = {"x-csrf-token": admin.token}
    assert (await admin.client.post(path, json={}, headers=headers)).status_code == 404


async def test_names_of_others_are_not_suggested(tenant: Browser, home: VersionRecord) -> None:
    assert (await tenant.open("/console/playground/models?search=ho")).json() == []


async def test_a_whole_name_is_completed(admin: Browser, home: VersionRecord) -> None:
    suggested = "/console/playground/models?search="
    assert (await admin.open(f"{suggested}om")).json() == ["home"]
    forms = ["home", "home@live", "home@1"]
    assert (await admin.open(f"{suggested}home@")).json() == forms
    full = [f"default/{form}" for form in forms]
    assert (await admin.open(f"{suggested}default/home")).json() == full


def test_few_of_many_are_suggested(registry: Registry) -> None:
    fill(registry, 1_000)
    caller = Caller("default", frozenset({"admin"}))
    found = suggestions(registry, caller, "tenant-07")
    assert len(found) == MAX_SUGGESTIONS
    assert found[0] == "tenant-0700/bot-00"
    own = Caller("tenant-0700", frozenset({"inference"}))
    assert suggestions(registry, own, "bot") == ["bot-00"]


async def test_a_hostile_name_stays_text(admin: Browser) -> None:
    page = await admin.open('/console/playground?model="><script>alert(1)</script>')
    assert page.status_code == 200
    assert "<script>alert" not in page.text
