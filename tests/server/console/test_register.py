"""Registering by upload: the verdict, or every reason."""

from __future__ import annotations

from pathlib import Path

import httpx
from markupsafe import escape

from adapters_registry.registry import Registry
from server.auth import Keys
from tests.server.answers import files_of
from tests.server.console.conftest import Browser
from tests.tiny import AdapterFactory

PAGE = "/console/register"


async def send(browser: Browser, source: Path, **fields: str) -> httpx.Response:
    headers = {"hx-request": "true", "x-csrf-token": browser.token}
    return await browser.client.post(PAGE, headers=headers, data=fields, files=files_of(source))


async def test_an_upload_becomes_a_version(
    admin: Browser, registry: Registry, make_adapter: AdapterFactory
) -> None:
    assert "adapter_model.safetensors" in (await admin.open(PAGE)).text
    source = make_adapter()
    answer = await send(admin, source, name="bot", metadata='{"evaluation": {"f1": 0.5}}')
    assert answer.status_code == 200, answer.text
    assert "default/bot@1 is ready, and live" in answer.text
    assert registry.get_version("default", "bot", 1).metadata["evaluation"] == {"f1": 0.5}
    assert "has this content already" in (await send(admin, source, name="bot")).text


async def test_a_refused_one_has_every_reason(
    admin: Browser, registry: Registry, make_adapter: AdapterFactory
) -> None:
    answer = await send(admin, make_adapter(config={"r": 3, "bias": "all"}), name="bot")
    assert answer.status_code == 422
    reasons = registry.get_version("default", "bot", 1).reasons
    assert len(reasons) > 1
    for reason in reasons:
        assert str(escape(reason["message"])) in answer.text


async def test_a_tenant_registers_for_itself_alone(
    browser: Browser, registry: Registry, keys: Keys, make_adapter: AdapterFactory
) -> None:
    await browser.log_in(keys.create("default", ["adapters"]))
    assert (await send(browser, make_adapter(), name="bot", tenant="acme")).status_code == 404
    assert (await send(browser, make_adapter(), name="No name")).status_code == 400
    browser.token = "0"
    assert (await send(browser, make_adapter(), name="bot")).status_code == 403
    assert not registry.catalog.adapters


async def test_larger_than_other_bodies_but_not_without_bounds(
    admin: Browser, make_adapter: AdapterFactory
) -> None:
    source = make_adapter()
    (source / "adapter_model.safetensors").write_bytes(bytes(3 << 20))
    answer = await send(admin, source, name="bot")
    assert answer.status_code in (400, 413)
    assert answer.headers["hx-retarget"] == "#messages"
