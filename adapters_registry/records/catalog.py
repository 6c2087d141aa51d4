"""The catalog: what exists, held in memory. Resolving a name reads it and never the database.

A `Catalog` is immutable and replaced as a whole. After a change only the adapters that the change
touched are read again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any, NamedTuple

from sqlalchemy import func, select
from sqlalchemy.orm import Session, contains_eager, selectinload

from adapters_registry.compatibility import (
    UNKNOWN_BASE,
    ServedBase,
    details_on,
    reasons_on,
    state_on,
)
from adapters_registry.names import LIVE
from adapters_registry.records.access.suspension import Suspension
from adapters_registry.records.keys import KeyRecord
from adapters_registry.records.tables import (
    UNDER_CHECK,
    Adapter,
    Alias,
    ApiKey,
    Epoch,
    Mark,
    Tenant,
    Version,
    VersionState,
)
from adapters_registry.records.tenants import TenantRecord
from adapters_registry.rollout.promotion import WarmPromotion

IN_CATALOG = (*UNDER_CHECK, VersionState.READY)
"""The stored states of versions that are kept in memory: those that are, or may come to be,
served. Some of them are incompatible with this server's base."""


class Target(NamedTuple):
    """A version that an alias points to, with its share of requests in per cent."""

    version: int
    weight: int


@dataclass(frozen=True)
class VersionRecord:
    """An immutable version, as the rest of the program sees it."""

    tenant: str
    name: str
    number: int
    digest: str
    version_id: int
    state: VersionState
    rank: int | None
    size_bytes: int
    reasons: list[dict[str, Any]]
    source: str
    metadata: dict[str, Any]
    created_at: datetime
    pinned: bool = False

    @cached_property
    def adapter_id(self) -> str:
        """`tenant/name`."""
        return f"{self.tenant}/{self.name}"

    @cached_property
    def public_name(self) -> str:
        """`tenant/name@3`: the version's name in responses and in the engine."""
        return f"{self.adapter_id}@{self.number}"


@dataclass(frozen=True)
class AliasRecord:
    """An alias: where it points, where it pointed before, and how often it was changed."""

    targets: tuple[Target, ...]
    previous: tuple[Target, ...] | None = None
    revision: int = 1

    @property
    def main(self) -> int:
        """Return the version with the largest share. If several have it, the first of them."""
        return largest(self.targets)

    def among(self, offered: Container[int]) -> tuple[Target, ...]:
        """Return the targets that are offered, or all if none is."""
        return tuple(t for t in self.targets if t.version in offered) or self.targets


def largest(targets: Sequence[Target]) -> int:
    """Return the version with the largest share. If several have it, the first of them."""
    return max(targets, key=lambda target: target.weight).version


def pick(targets: Sequence[Target], share: float) -> int:
    """Return the version for a number in [0, 1), which the targets divide by their weights."""
    whole, edge = sum(target.weight for target in targets), 0
    for target in targets:
        edge += target.weight
        if share * whole < edge:
            return target.version
    return targets[-1].version


@dataclass(frozen=True)
class AdapterRecord:
    """An adapter with its versions by number, and its aliases.

    Rejected and retired versions are left out: the history is read from the database.
    """

    tenant: str
    name: str
    created_at: datetime
    versions: Mapping[int, VersionRecord]
    aliases: Mapping[str, AliasRecord]
    shared_with: frozenset[str] = frozenset()
    """The names that it is shared with."""
    shared_with_ids: frozenset[str] = frozenset()
    """The ids of the other tenants that may use it."""
    public: bool = False
    """Every tenant may use it."""
    num_versions: int = 0
    """How many versions there are, in any state."""
    live_revision: int = 0
    """How often `live` was pointed elsewhere or removed. It never decreases."""
    warming: WarmPromotion | None = None
    """A promotion that waits until servers have loaded what it points to."""
    suspension: Suspension | None = None

    @cached_property
    def id(self) -> str:
        """`tenant/name`."""
        return f"{self.tenant}/{self.name}"

    @cached_property
    def largest_bytes(self) -> int:
        """Return the size of its largest version, 0 if it has none."""
        return max((version.size_bytes for version in self.versions.values()), default=0)

    @cached_property
    def ready(self) -> Mapping[int, VersionRecord]:
        """Return the versions that can be served."""
        return {n: v for n, v in self.versions.items() if v.state is VersionState.READY}

    @cached_property
    def incompatible(self) -> Mapping[int, VersionRecord]:
        """Return the versions that are not offered, because they were not accepted on this base."""
        return {n: v for n, v in self.versions.items() if v.state is VersionState.INCOMPATIBLE}

    @cached_property
    def live(self) -> VersionRecord | None:
        """Return the bare name's version if it is ready, in a split the main ready version."""
        alias = self.aliases.get(LIVE)
        return self.ready.get(largest(alias.among(self.ready))) if alias else None

    @cached_property
    def described(self) -> VersionRecord | None:
        """Return the version whose rank and size lists show: the live one, or the newest ready."""
        return self.live or self.ready.get(max(self.ready, default=0))


@dataclass(frozen=True)
class Catalog:
    """All adapters as of one change, by (tenant, name); tenants by name, keys by id.

    Versions are as a server with the base `base` sees them.
    """

    adapters: Mapping[tuple[str, str], AdapterRecord] = field(default_factory=dict)
    epoch: int = 0
    mark: str = ""
    """Of the change with this epoch."""
    tenants: Mapping[str, TenantRecord] = field(default_factory=dict)
    keys: Mapping[str, KeyRecord] = field(default_factory=dict)
    base: ServedBase = UNKNOWN_BASE

    @cached_property
    def warming(self) -> tuple[AdapterRecord, ...]:
        """Return the adapters for which a promotion waits until servers have loaded a version."""
        return tuple(adapter for adapter in self.adapters.values() if adapter.warming)

    @cached_property
    def has_splits(self) -> bool:
        """Return whether the bare name of any adapter is split between versions."""
        live = (adapter.aliases.get(LIVE) for adapter in self.adapters.values())
        return any(len(alias.targets) > 1 for alias in live if alias)

    @cached_property
    def ready_digests(self) -> Mapping[str, str]:
        """Return the digests of all versions that can be served, by public name."""
        return {
            version.public_name: version.digest
            for adapter in self.adapters.values()
            for version in adapter.ready.values()
        }

    def adapters_in_state(self, state: VersionState) -> set[tuple[str, str]]:
        """Return tenant and name of every adapter that has a version in this state here."""
        return {
            key
            for key, adapter in self.adapters.items()
            if any(version.state is state for version in adapter.versions.values())
        }


def read_changes(session: Session, catalog: Catalog) -> Catalog:
    """Return the catalog with every change since it was read, or itself if there was none.

    The session must be a `snapshot`: an adapter that is changed between two queries would be read
    without its versions.
    """
    epoch, mark = _last_change(session)
    if (epoch, mark) == (catalog.epoch, catalog.mark):
        return catalog
    adapters = dict(catalog.adapters)
    versions, counts = _read_versions(session, catalog), _count_versions(session, catalog)
    changed = select(Adapter).where(Adapter.epoch > catalog.epoch).order_by(Adapter.id)
    for row in session.scalars(changed.options(selectinload(Adapter.aliases))):
        key = row.tenant, row.name
        if row.deleted:
            adapters.pop(key, None)
        else:
            adapters[key] = _adapter_record(row, versions.get(row.id, {}), counts.get(row.id, 0))
    tenants, keys = _read_tenants(session, catalog), _read_keys(session, catalog)
    return Catalog(adapters, epoch, mark, tenants, keys, catalog.base)


def has_diverged(session: Session, catalog: Catalog) -> bool:
    """Return whether a catalog is of another history than the database: a backup was restored.

    What was made after the backup is gone then, and must not be served on; numbers and ids that
    were given since may be given again.
    """
    epoch, mark = _last_change(session)
    if not catalog.epoch or (epoch, mark) == (catalog.epoch, catalog.mark):
        return False
    known = session.scalar(select(Mark.mark).where(Mark.epoch == catalog.epoch))
    return epoch < catalog.epoch or known != catalog.mark


def _last_change(session: Session) -> tuple[int, str]:
    epoch, mark = session.execute(select(Epoch.value, Epoch.mark)).one()
    return epoch, mark


def _read_tenants(session: Session, catalog: Catalog) -> dict[str, TenantRecord]:
    tenants = dict(catalog.tenants)
    for row in session.scalars(select(Tenant).where(Tenant.epoch > catalog.epoch)):
        if row.deleted:
            tenants.pop(row.name, None)
        else:
            tenants[row.name] = TenantRecord.of(row)
    return tenants


def _read_keys(session: Session, catalog: Catalog) -> dict[str, KeyRecord]:
    changed = session.scalars(select(ApiKey).where(ApiKey.epoch > catalog.epoch))
    return {**catalog.keys, **{row.id: KeyRecord.of(row) for row in changed}}


def _read_versions(session: Session, catalog: Catalog) -> dict[int, dict[int, VersionRecord]]:
    """Return the catalog's versions of adapters that have changed, by adapter and number."""
    query = (
        select(Version)
        .join(Version.adapter)
        .where(Adapter.epoch > catalog.epoch, Version.state.in_(IN_CATALOG))
        .options(contains_eager(Version.adapter))
        .order_by(Version.id)
    )
    found: dict[int, dict[int, VersionRecord]] = defaultdict(dict)
    for row in session.scalars(query):
        found[row.adapter_id][row.number] = version_record(row, catalog.base)
    return found


def _count_versions(session: Session, catalog: Catalog) -> dict[int, int]:
    counted = select(Version.adapter_id, func.count()).join(Version.adapter)
    changed = counted.where(Adapter.epoch > catalog.epoch).group_by(Version.adapter_id)
    return {row[0]: row[1] for row in session.execute(changed)}


def _adapter_record(
    row: Adapter, versions: Mapping[int, VersionRecord], num_versions: int
) -> AdapterRecord:
    return AdapterRecord(
        tenant=row.tenant,
        name=row.name,
        created_at=row.created_at,
        versions=versions,
        aliases={alias.name: alias_record(alias) for alias in row.aliases},
        shared_with=frozenset(row.shared_with),
        shared_with_ids=frozenset(row.shared_with_ids),
        public=row.public,
        num_versions=num_versions,
        live_revision=row.live_revision,
        warming=WarmPromotion.of(row.warming) if row.warming else None,
        suspension=Suspension.of(row),
    )


def version_record(row: Version, base: ServedBase) -> VersionRecord:
    """Return a row's record for a server with this base. The row's adapter must be loaded."""
    return VersionRecord(
        tenant=row.adapter.tenant,
        name=row.adapter.name,
        number=row.number,
        digest=row.digest,
        version_id=row.id,
        state=state_on(row, base),
        rank=row.rank,
        size_bytes=row.size_bytes,
        reasons=reasons_on(row, base),
        source=row.source,
        metadata=details_on(row, base),
        created_at=row.created_at,
        pinned=row.pinned,
    )


def alias_record(row: Alias) -> AliasRecord:
    """Return a row as a record."""
    return AliasRecord(
        targets=_targets(row.targets),
        previous=_targets(row.previous) if row.previous else None,
        revision=row.revision,
    )


def _targets(rows: list[list[int]]) -> tuple[Target, ...]:
    return tuple(Target(version, weight) for version, weight in rows)
