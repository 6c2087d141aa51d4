"""A tenant's quota of adapters and bytes, and what running registrations have reserved of it.

A registration reserves its part before it writes a byte, so that several at a time cannot take more
than the quota together. The functions are operations for `Registry.apply`.
"""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any

from sqlalchemy import Select, delete, func, select, update

from adapters_registry.errors import QuotaExceeded
from adapters_registry.records.change import Change
from adapters_registry.records.tables import Adapter, Reservation, Version, now
from adapters_registry.records.tenants import Quota, TenantRecord, require_tenant

RESERVED_FOR = timedelta(hours=2)
"""A registration that takes longer loses its reservation: the quota is then checked at its end."""


def limits_storage(quota: Quota) -> bool:
    """Whether a quota limits what is stored."""
    return quota.adapters is not None or quota.adapter_bytes is not None


def reserve(change: Change, tenant: str, adapter: str, size_bytes: int, server: str) -> str:
    """Reserve quota for one more version of an adapter. Returns the reservation's id.

    Raises:
        NotFound: there is no such tenant.
        QuotaExceeded: the tenant may have no more.
    """
    change.session.execute(delete(Reservation).where(Reservation.expires_at < now()))
    check_quota(change, tenant, adapter, size_bytes)
    row = Reservation(id=uuid.uuid4().hex, tenant=tenant, adapter=adapter, size_bytes=size_bytes)
    row.server, row.expires_at = server[:255], now() + RESERVED_FOR
    change.session.add(row)
    return row.id


def enlarge(change: Change, reservation: str, size_bytes: int) -> None:
    """Raise a reservation to `size_bytes` in all, for a registration that is larger than it said.

    Raises:
        QuotaExceeded: the tenant may have no more.
    """
    row = change.session.get(Reservation, reservation)
    if row is None:  # The registration took too long. The quota is checked again at its end.
        return
    row.size_bytes = 0
    change.session.flush()
    check_quota(change, row.tenant, row.adapter, size_bytes)
    row.size_bytes = size_bytes


def protect(change: Change, reservation: str, digest: str) -> None:
    """Keep the files with this digest from being collected until the reservation ends."""
    values = {"digest": digest, "expires_at": now() + RESERVED_FOR}
    change.session.execute(update(Reservation).where(Reservation.id == reservation).values(values))


def release(change: Change, reservation: str) -> None:
    """End a reservation. It may have ended already."""
    change.session.execute(delete(Reservation).where(Reservation.id == reservation))


def release_all(change: Change, server: str) -> None:
    """End the reservations that a server still had when it was killed."""
    change.session.execute(delete(Reservation).where(Reservation.server == server[:255]))


def protected_digests() -> Select[Any]:
    """Select the digests that running registrations protect."""
    running = Reservation.expires_at >= now()
    return select(Reservation.digest).where(Reservation.digest.is_not(None), running)


def check_quota(change: Change, tenant: str, adapter: str, size_bytes: int) -> None:
    """Check that a tenant may have one more version of this adapter, besides what is reserved.

    Files count until they are removed, also those of rejected and retired versions.

    Raises:
        NotFound: there is no such tenant.
        QuotaExceeded: the tenant may have no more.
    """
    quota = TenantRecord.of(require_tenant(change, tenant)).quota
    session = change.session
    reserved = (Reservation.tenant == tenant, Reservation.expires_at >= now())
    if quota.adapters is not None:
        owned = select(Adapter.name).where(Adapter.tenant == tenant, Adapter.deleted.is_(False))
        names = {
            *session.scalars(owned),
            *session.scalars(select(Reservation.adapter).where(*reserved)),
        }
        if len(names - {adapter}) >= quota.adapters:
            raise QuotaExceeded(f"the tenant {tenant} may have {quota.adapters} adapters")
    if quota.adapter_bytes is not None:
        of_versions = select(func.sum(Version.size_bytes)).join(Adapter)
        stored = session.scalar(
            of_versions.where(Adapter.tenant == tenant, Version.collected.is_(False))
        )
        coming = session.scalar(select(func.sum(Reservation.size_bytes)).where(*reserved))
        used = int(stored or 0) + int(coming or 0)
        if used + size_bytes > quota.adapter_bytes:
            raise QuotaExceeded(
                f"the tenant {tenant} may have {quota.adapter_bytes} bytes of adapters, has {used} "
                f"with those that are being registered, and this one has {size_bytes}"
            )
