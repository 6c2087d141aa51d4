"""Who else may use an adapter; an operation for `Registry.apply`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from adapters_registry.errors import InvalidName
from adapters_registry.names import check_name
from adapters_registry.records.change import Change
from adapters_registry.records.tables import Adapter

MAX_SHARED_WITH = 1000


def share_adapter(
    change: Change, tenant: str, name: str, shared_with: Sequence[str], public: bool
) -> None:
    """Let these tenants, and no others but the owner, use an adapter; `public`: everyone may.

    Whether they exist isn't looked up: that would tell one tenant of another.

    Raises:
        NotFound: no such adapter.
        InvalidName: one of them can't be a tenant's name, or they are too many.
    """
    adapter = change.adapter(tenant, name)
    if len(shared_with) > MAX_SHARED_WITH:
        raise InvalidName(f"an adapter is shared with at most {MAX_SHARED_WITH} tenants")
    before = _body(adapter)
    others = {check_name(other, "tenant") for other in shared_with} - {tenant}
    adapter.shared_with, adapter.public = sorted(others), public
    if (after := _body(adapter)) != before:
        change.log("adapter.share", adapter, before=before, after=after)


def _body(adapter: Adapter) -> dict[str, Any]:
    return {"shared_with": adapter.shared_with, "public": adapter.public}
