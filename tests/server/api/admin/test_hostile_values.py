"""Values that a database can't hold, wherever a request may have one: 4xx on either database."""

from __future__ import annotations

import json

import httpx
import pytest

from adapters_registry.records.catalog import VersionRecord

ADAPTER = "/admin/adapters/default/home"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    if request.param == "sqlite":
        return str(request.getfixturevalue("sqlite_url"))
    return str(request.getfixturevalue("postgres").migrated_database())


async def test_in_urls(client: httpx.AsyncClient, home: VersionRecord) -> None:
    for value in ("%00", "a%00b", "%ED%A0%80", "-1", "%D9%A1", str(1 << 63), "9" * 40):
        for method, url in (
            ("GET", f"/admin/audit?subject={value}"),
            ("GET", f"/admin/audit?tenant={value}"),
            ("GET", f"/admin/audit?action={value}"),
            ("GET", f"/admin/audit?before={value}"),
            ("GET", f"/admin/keys?tenant={value}&after={value}"),
            ("GET", f"/admin/usage?tenant={value}"),
            ("GET", f"/admin/adapters?tenant={value}&search={value}"),
            ("GET", f"/admin/adapters?after={value}"),
            ("GET", f"{ADAPTER}/versions/{value}"),
            ("GET", f"/v1/models/{value}"),
            ("DELETE", f"/admin/keys/{value}"),
            ("DELETE", f"/admin/tenants/{value}"),
            ("DELETE", f"/admin/adapters/default/{value}"),
            ("DELETE", f"/admin/adapters/{value}/home"),
            ("DELETE", f"{ADAPTER}/versions/{value}"),
            ("DELETE", f"{ADAPTER}/aliases/{value}"),
            ("PUT", f"{ADAPTER}/versions/{value}/pin"),
            ("POST", f"{ADAPTER}/versions/{value}/prefetch"),
            ("POST", f"{ADAPTER}/rollback?alias={value}"),
        ):
            response = await client.request(method, url)
            assert response.status_code < 500, (method, url, response.text)


@pytest.mark.parametrize("value", ["\0", "\ud800", "x" * 100_000, 1 << 63, 10**40, -1, 1e300])
async def test_in_bodies(client: httpx.AsyncClient, home: VersionRecord, value: object) -> None:
    for method, url, body in (
        ("POST", "/admin/tenants", {"name": value}),
        ("POST", "/admin/keys", {"tenant": value}),
        ("POST", "/admin/keys", {"tenant": "default", "label": value}),
        ("POST", "/admin/adapters", {"name": value, "source": "/"}),
        ("POST", "/admin/adapters", {"name": "a", "tenant": value, "source": "/"}),
        ("POST", "/admin/adapters", {"name": "a", "source": value}),
        ("PUT", f"{ADAPTER}/sharing", {"shared_with": [value]}),
        ("PUT", f"{ADAPTER}/aliases/a", {"targets": [{"version": value}]}),
        ("PUT", f"{ADAPTER}/aliases/a", {"targets": [{"version": 1, "weight": value}]}),
        ("POST", "/v1/chat/completions", {"model": value}),
    ):
        headers = {"content-type": "application/json"}
        response = await client.request(method, url, content=json.dumps(body), headers=headers)
        assert 400 <= response.status_code < 500, (method, url, response.text)


@pytest.mark.parametrize("at", ["9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59", 1e300])
async def test_times(client: httpx.AsyncClient, at: str | float) -> None:
    for name in ("since", "until"):
        response = await client.get("/admin/usage", params={name: at})
        assert response.status_code < 500, response.text
    body = {"tenant": "default", "expires_at": at}
    assert (await client.post("/admin/keys", json=body)).status_code < 500
