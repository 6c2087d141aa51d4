"""Requests that fail to authenticate leave a trace, and not more than a few lines of it."""

import logging

import httpx
import pytest

from adapters_registry.records.keys import revoke_key
from adapters_registry.registry import Registry
from server import metrics
from server.auth import Keys
from server.middleware.refusals import LINES_A_MINUTE, Refusals
from server.settings import Settings


def count(reason: str) -> float:
    return float(metrics.AUTHENTICATION_FAILURES.labels(reason)._value.get())


@pytest.mark.parametrize("reason", ["missing", "unknown", "revoked", "scope"])
async def test_a_refused_key_is_logged_and_counted(
    client: httpx.AsyncClient,
    keys: Keys,
    registry: Registry,
    caplog: pytest.LogCaptureFixture,
    reason: str,
) -> None:
    key = keys.create("default", ["inference"])
    _, key_id, secret = key.split("-", 2)
    headers = {"Authorization": f"Bearer {key}"}
    path = "/v1/models"
    match reason:
        case "missing":
            headers = {"Authorization": ""}
        case "unknown":
            headers = {"Authorization": f"Bearer {key}x"}
        case "revoked":
            registry.apply(revoke_key, key_id)
        case "scope":
            path = "/admin/tenants"
    before = count(reason)
    response = await client.get(path, headers=headers)
    assert response.status_code == (403 if reason == "scope" else 401)
    assert count(reason) == before + 1
    (line,) = [r.getMessage() for r in caplog.records if r.name == Refusals.__module__]
    assert line.endswith(reason)
    assert "127.0.0.1" in line
    assert (key_id in line) == (reason != "missing")
    assert secret not in line


def test_a_flood_is_counted_and_hardly_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    before, kept = count("unknown"), Refusals()
    for _ in range(10 * LINES_A_MINUTE):
        kept.note("unknown", "lpx-\n-forged", "192.0.2.1")
    assert count("unknown") == before + 10 * LINES_A_MINUTE
    assert len(caplog.records) == LINES_A_MINUTE
    assert "forged" not in caplog.text


def test_trusted_proxies() -> None:
    assert Settings().trusted_proxies == ()
    proxies = Settings(trusted_proxies="10.0.0.0/8, 127.0.0.1").trusted_proxies
    assert proxies == ("10.0.0.0/8", "127.0.0.1")
    with pytest.raises(ValueError, match="neither an address nor a network"):
        Settings(trusted_proxies="localhost")
