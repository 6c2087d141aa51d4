"""Refuses what is suspended: a tenant's requests, and requests for an adapter. Pure."""

from __future__ import annotations

from adapters_registry.records.catalog import Catalog, VersionRecord
from server.auth import Caller
from server.errors import Suspended

RETRY_AFTER_SECONDS = 60
"""What a client is told, though nobody knows when something suspended is resumed."""


def require_active_tenant(caller: Caller, catalog: Catalog) -> None:
    """Raise `Suspended` if the caller's tenant is suspended."""
    tenant = catalog.tenants.get(caller.tenant)
    if tenant is not None and tenant.suspension is not None:
        raise _refusal(f"the tenant {caller.tenant}", tenant.suspension.reason)


def require_in_service(version: VersionRecord, caller: Caller, catalog: Catalog) -> None:
    """Raise `Suspended` if the version's adapter is suspended, or the adapter's owner.

    Why an owner is suspended is told to nobody else.
    """
    owner = catalog.tenants.get(version.tenant)
    adapter = catalog.adapters.get((version.tenant, version.name))
    what = f"the adapter {version.adapter_id}"
    if adapter is not None and adapter.suspension is not None:
        raise _refusal(what, adapter.suspension.reason, param="model")
    if owner is not None and owner.suspension is not None:
        reason = owner.suspension.reason if caller.manages(owner.name) else ""
        raise _refusal(what, reason, param="model")


def _refusal(what: str, reason: str, param: str | None = None) -> Suspended:
    because = f" ({reason})" if reason else ""
    return Suspended(
        f"{what} is suspended{because}: requests are refused until it is resumed",
        param=param,
        retry_after_seconds=RETRY_AFTER_SECONDS,
    )
