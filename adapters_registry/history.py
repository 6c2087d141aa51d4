"""Versions in any state, read from the database: the catalog has only those that may be served."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Select, select, tuple_
from sqlalchemy.orm import Session, contains_eager

from adapters_registry.compatibility import ServedBase
from adapters_registry.records.catalog import VersionRecord, version_record
from adapters_registry.records.change import is_number
from adapters_registry.records.tables import Adapter, Version, VersionState


def read_history(
    session: Session,
    base: ServedBase,
    tenant: str,
    name: str,
    *,
    before: int | None,
    limit: int,
) -> list[VersionRecord]:
    """Return at most `limit` versions of an adapter, newest first.

    `before` continues below the last number of the page before.
    """
    query = _versions_of(tenant, name).order_by(Version.number.desc()).limit(limit)
    if before is not None:
        query = query.where(Version.number < before)
    return [version_record(row, base) for row in session.scalars(query)]


def read_version(
    session: Session, base: ServedBase, tenant: str, name: str, number: int
) -> VersionRecord | None:
    """Return one version, or None if there is none."""
    if not is_number(number):
        return None
    row = session.scalar(_versions_of(tenant, name).where(Version.number == number))
    return version_record(row, base) if row else None


def newest_versions(
    session: Session, base: ServedBase, adapters: Iterable[tuple[str, str]]
) -> dict[str, VersionRecord]:
    """Return the newest version of each adapter, given by tenant and name, by `tenant/name`."""
    query = (
        select(Version)
        .join(Version.adapter)
        .where(
            Adapter.deleted.is_(False),
            tuple_(Adapter.tenant, Adapter.name).in_(list(adapters)),
            Version.number == Adapter.last_number,
        )
        .options(contains_eager(Version.adapter))
    )
    records = [version_record(row, base) for row in session.scalars(query)]
    return {record.adapter_id: record for record in records}


def adapters_in_state(session: Session, state: VersionState) -> set[tuple[str, str]]:
    """Return tenant and name of every adapter that has a version in this stored state."""
    with_state = select(Version.adapter_id).where(Version.state == state)
    named = select(Adapter.tenant, Adapter.name).where(
        Adapter.deleted.is_(False), Adapter.id.in_(with_state)
    )
    return {(tenant, name) for tenant, name in session.execute(named)}


def _versions_of(tenant: str, name: str) -> Select[Version]:
    named = Adapter.tenant == tenant, Adapter.name == name, Adapter.deleted.is_(False)
    joined = select(Version).join(Version.adapter).where(*named)
    return joined.options(contains_eager(Version.adapter))
