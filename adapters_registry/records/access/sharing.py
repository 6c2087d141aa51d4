"""Sharing an adapter with other tenants. An operation for `Registry.apply`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select

from adapters_registry.errors import InvalidName
from adapters_registry.names import check_name
from adapters_registry.records.change import Change
from adapters_registry.records.tables import Adapter, Tenant

MAX_SHARED_WITH = 1000


def share_adapter(
    change: Change, tenant: str, name: str, shared_with: Sequence[str], public: bool
) -> None:
    """Let the owner and these tenants use an adapter, or every tenant if it is `public`.

    A name that no tenant has is kept as it was given, so that the answer does not tell which
    tenants exist. A tenant that is created later with that name does not get the adapter.

    Raises:
        NotFound: there is no such adapter.
        InvalidName: one of the names cannot be a tenant's, or there are too many.
    """
    adapter = change.adapter(tenant, name)
    if len(shared_with) > MAX_SHARED_WITH:
        raise InvalidName(f"an adapter is shared with at most {MAX_SHARED_WITH} tenants")
    before = _body(adapter)
    others = {check_name(other, "tenant") for other in shared_with} - {tenant}
    named = select(Tenant.id).where(Tenant.name.in_(others), Tenant.deleted.is_(False))
    adapter.shared_with, adapter.public = sorted(others), public
    adapter.shared_with_ids = sorted(change.session.scalars(named))
    if (after := _body(adapter)) != before:
        change.log("adapter.share", adapter, before=before, after=after)


def _body(adapter: Adapter) -> dict[str, Any]:
    return {"shared_with": adapter.shared_with, "public": adapter.public}
