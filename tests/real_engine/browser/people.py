"""Tenants, keys and adapters for tests of the console, made through the HTTP API."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.real_engine.running_server import RunningServer


def make_key(server: RunningServer, tenant: str, *scopes: str, **fields: str) -> tuple[str, str]:
    """Return a new key of a tenant, which is created if it is not there, and the key's id."""
    server.admin("POST", "/admin/tenants", json={"name": tenant})
    body = {"tenant": tenant, "scopes": scopes, **fields}
    made = server.admin("POST", "/admin/keys", json=body)
    assert made.status_code == 201, made.text
    key = str(made.json()["key"])
    return key, key.split("-")[1]


def upload(
    server: RunningServer,
    adapter: str,
    files: Sequence[Path],
    metadata: dict[str, Any] | None = None,
) -> None:
    """Register a version of `tenant/name`, and wait for the gate's verdict."""
    tenant, _, name = adapter.partition("/")
    server.admin("POST", "/admin/tenants", json={"name": tenant})
    fields = {"tenant": tenant, "name": name, "metadata": json.dumps(metadata or {})}
    parts = [("files", (file.name, file.read_bytes())) for file in files]
    answer = server.admin("POST", "/admin/adapters?wait=true", data=fields, files=parts)
    assert answer.status_code in (201, 422), answer.text
