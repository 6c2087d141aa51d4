"""Pages of adapters in a given order. The cursor names the last adapter, so none is left out."""

from __future__ import annotations

import base64
import enum
import json
from collections.abc import Callable
from typing import Any

from adapters_registry.records.catalog import AdapterRecord
from adapters_registry.records.tables import VersionState
from adapters_registry.registry import Registry
from server.auth import Caller
from server.errors import InvalidRequest

_KEYS: dict[str, Callable[[AdapterRecord], Any]] = {
    "name": lambda adapter: adapter.id,
    "created": lambda adapter: adapter.created_at.timestamp(),
    "size": lambda adapter: adapter.described.size_bytes if adapter.described else 0,
    "versions": lambda adapter: adapter.num_versions,
}


class Sorting(enum.StrEnum):
    """The order of a list."""

    NAME = "name"
    NAME_DOWN = "-name"
    CREATED = "created"
    CREATED_DOWN = "-created"
    SIZE = "size"
    SIZE_DOWN = "-size"
    VERSIONS = "versions"
    VERSIONS_DOWN = "-versions"


def find_adapters(
    registry: Registry,
    caller: Caller,
    *,
    tenant: str | None = None,
    search: str | None = None,
    state: VersionState | None = None,
) -> list[AdapterRecord]:
    """Return the adapters that a caller manages and that match every filter which is given.

    `search` is a part of `tenant/name`; `state` is that of any version. With it, the database may
    be read.
    """
    in_state = registry.find_adapters(state) if state else None
    return [
        adapter
        for adapter in registry.catalog.adapters.values()
        if caller.manages(adapter.tenant)
        and tenant in (None, adapter.tenant)
        and (search is None or search in adapter.id)
        and (in_state is None or (adapter.tenant, adapter.name) in in_state)
    ]


def page_of(
    adapters: list[AdapterRecord], sort: Sorting, limit: int, after: str
) -> tuple[list[AdapterRecord], str | None]:
    """Return the page after the cursor `after` (empty: the first), and the next page's cursor.

    Raises:
        InvalidRequest: `after` is not a cursor.
    """
    key, descending = _KEYS[sort.lstrip("-")], sort.startswith("-")

    def place(adapter: AdapterRecord) -> tuple[Any, str]:
        return key(adapter), adapter.id

    adapters = sorted(adapters, key=place, reverse=descending)
    if after:
        seen = _decode(after)
        try:
            adapters = [a for a in adapters if (place(a) < seen if descending else place(a) > seen)]
        except TypeError:
            raise unknown_cursor() from None
    page = adapters[:limit]
    return page, _encode(place(page[-1])) if len(adapters) > limit else None


def _encode(place: tuple[Any, str]) -> str:
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode()


def _decode(cursor: str) -> tuple[Any, str]:
    try:
        value, adapter_id = json.loads(base64.urlsafe_b64decode(cursor))
    except ValueError:
        raise unknown_cursor() from None
    return value, adapter_id


def unknown_cursor() -> InvalidRequest:
    """Return the error for an `after` that did not come from a page."""
    return InvalidRequest(
        "after is not a cursor: send the `next` of the page before", param="after"
    )
