"""A tenant's quota of adapters and bytes, and what running registrations have reserved of it.

A registration reserves its part before it writes a byte, so that several at a time cannot take more
than the quota together. The functions are operations for `Registry.apply`. Reservations end by the
database's clock: a server whose own clock is wrong must not end those of others.
"""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, Select, delete, func, select, update
from sqlalchemy.orm import Session

from adapters_registry.errors import QuotaExceeded
from adapters_registry.records.change import Change
from adapters_registry.records.database import database_time
from adapters_registry.records.tables import Adapter, Reservation, Version
from adapters_registry.records.tenants import Quota, TenantRecord, require_tenant

Conditions = tuple[ColumnElement[bool], ...]

MINUTE = timedelta(minutes=1)
RESERVED_FOR = timedelta(hours=2)
"""A registration that takes longer loses its reservation: the quota is then checked at its end."""


def limits_storage(quota: Quota) -> bool:
    """Return whether a quota limits what is stored."""
    limits = quota.adapters, quota.adapter_bytes, quota.versions, quota.registrations_per_minute
    return any(limit is not None for limit in limits)


def reserve(change: Change, tenant: str, adapter: str, size_bytes: int, server: str) -> str:
    """Reserve quota for one more version of an adapter. Returns the reservation's id.

    Raises:
        NotFound: there is no such tenant.
        QuotaExceeded: the tenant may have no more.
    """
    at = database_time(change.session)
    change.session.execute(delete(Reservation).where(Reservation.expires_at < at))
    check_quota(change, tenant, adapter, size_bytes)
    row = Reservation(id=uuid.uuid4().hex, tenant=tenant, adapter=adapter, size_bytes=size_bytes)
    row.server, row.expires_at = server[:255], at + RESERVED_FOR
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
    check_quota(change, row.tenant, row.adapter, size_bytes, besides=reservation)
    row.size_bytes = size_bytes


def protect(change: Change, reservation: str, digest: str) -> None:
    """Keep the files with this digest from being collected until the reservation ends."""
    values = {"digest": digest, "expires_at": database_time(change.session) + RESERVED_FOR}
    change.session.execute(update(Reservation).where(Reservation.id == reservation).values(values))


def release(change: Change, reservation: str) -> None:
    """End a reservation. It may have ended already."""
    change.session.execute(delete(Reservation).where(Reservation.id == reservation))


def release_all(change: Change, server: str) -> None:
    """End the reservations that a server still had when it was killed."""
    change.session.execute(delete(Reservation).where(Reservation.server == server[:255]))


def protected_digests(session: Session) -> Select[Any]:
    """Select the digests that running registrations protect."""
    running = Reservation.expires_at >= database_time(session)
    return select(Reservation.digest).where(Reservation.digest.is_not(None), running)


def check_quota(
    change: Change, tenant: str, adapter: str, size_bytes: int, *, besides: str = ""
) -> None:
    """Check that a tenant may have one more version of this adapter, beside what is reserved.

    Files count until they are removed, those of rejected and retired versions too. The reservation
    `besides` is this version's own, and does not count.

    Raises:
        NotFound: there is no such tenant.
        QuotaExceeded: the tenant may have no more.
    """
    quota = TenantRecord.of(require_tenant(change, tenant)).quota
    running = Reservation.expires_at >= database_time(change.session)
    coming = (Reservation.tenant == tenant, running, Reservation.id != besides)
    if quota.adapters is not None:
        _check_adapters(change, tenant, adapter, quota.adapters, coming)
    if quota.versions is not None or quota.adapter_bytes is not None:
        _check_stored(change, tenant, quota, size_bytes, coming)
    if quota.registrations_per_minute is not None:
        _check_rate(change, tenant, quota.registrations_per_minute, coming)


def _check_adapters(
    change: Change, tenant: str, adapter: str, most: int, coming: Conditions
) -> None:
    session = change.session
    owned = select(Adapter.name).where(Adapter.tenant == tenant, Adapter.deleted.is_(False))
    reserved = select(Reservation.adapter).where(*coming)
    names = {*session.scalars(owned), *session.scalars(reserved)}
    if len(names - {adapter}) >= most:
        raise QuotaExceeded(f"the tenant {tenant} may have {most} adapters")


def _check_stored(
    change: Change, tenant: str, quota: Quota, size_bytes: int, coming: Conditions
) -> None:
    sums = select(func.count(), func.sum(Version.size_bytes)).select_from(Version).join(Adapter)
    kept = sums.where(Adapter.tenant == tenant, Version.collected.is_(False))
    reserved = select(func.count(), func.sum(Reservation.size_bytes)).where(*coming)
    rows = [change.session.execute(query).one() for query in (kept, reserved)]
    num_versions, num_bytes = (sum(int(row[i] or 0) for row in rows) for i in (0, 1))
    if quota.versions is not None and num_versions >= quota.versions:
        raise QuotaExceeded(
            f"the tenant {tenant} may have {quota.versions} versions whose files are kept, and has "
            f"{num_versions} with those that are being registered: retire some"
        )
    if quota.adapter_bytes is not None and num_bytes + size_bytes > quota.adapter_bytes:
        raise QuotaExceeded(
            f"the tenant {tenant} may have {quota.adapter_bytes} bytes of adapters, has "
            f"{num_bytes} with those that are being registered, and this one is of {size_bytes}"
        )


def _check_rate(change: Change, tenant: str, most: int, coming: Conditions) -> None:
    lately = Version.created_at > database_time(change.session) - MINUTE
    registered = select(func.count()).select_from(Version).join(Adapter)
    done = change.session.scalar(registered.where(Adapter.tenant == tenant, lately)) or 0
    reserved = change.session.scalar(select(func.count(Reservation.id)).where(*coming)) or 0
    if done + reserved >= most:
        raise QuotaExceeded(f"the tenant {tenant} may register {most} versions a minute: wait")
