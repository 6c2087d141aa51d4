"""Garbage: files that no version needs any more. Operations for `Registry.apply`.

Registrations and collections are serialised by the epoch row (`Change.begin`), and a version's
files are renamed into place inside its registration's transaction. So no replica collects files
that are being registered. At the origin a registration's reservation protects them until then.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Collection, Container, Mapping
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import Protocol

from sqlalchemy import and_, delete, or_, select, update
from sqlalchemy.orm import Session

from adapters_registry.check.base import BaseSpec
from adapters_registry.composition.metadata import ON_REQUEST_NAME
from adapters_registry.content.origin import Origin
from adapters_registry.content.store import ContentStore
from adapters_registry.errors import StoreUnavailable
from adapters_registry.records.catalog import Catalog
from adapters_registry.records.change import Change
from adapters_registry.records.reservations import protected_digests
from adapters_registry.records.tables import Adapter, IdempotencyKey, Version, VersionState

log = logging.getLogger(__name__)

NEEDS_CONTENT = (
    VersionState.PENDING,
    VersionState.CHECKING,
    VersionState.READY,
    VersionState.INCOMPATIBLE,
)
MAX_REJECTED = 20
"""Rejected versions that an adapter keeps, for their reasons."""
_ROWS_AT_A_TIME = 500


def collect_garbage(
    change: Change,
    content: ContentStore,
    *,
    only: Collection[str] | None = None,
    dry_run: bool = False,
) -> dict[str, int]:
    """Remove local files that no version needs and nothing holds.

    `only` limits the collection to these digests. With `dry_run` nothing is removed. Returns the
    bytes of each digest that is, or would be, removed.
    """
    garbage = find_garbage(change.session, content.sizes(), only)
    if dry_run:
        return garbage
    removed = {digest: n for digest, n in garbage.items() if content.discard(digest)}
    if content.origin is None:
        _mark_collected(change, kept=content.sizes())
    return removed


def collect_origin_garbage(
    change: Change,
    origin: Origin,
    sizes: Mapping[str, int],
    *,
    only: Collection[str] | None = None,
    listed_at: datetime | None = None,
    dry_run: bool = False,
) -> dict[str, int]:
    """Remove files that no version needs from the origin, for all replicas.

    `sizes` is `origin.sizes()`, and `listed_at` is when the caller began to ask for it. The caller
    asks before the transaction, because the answer takes long. Without `listed_at`, `sizes` covers
    only the digests in `only`. Returns the bytes of each digest, as `collect_garbage` does.

    Raises:
        StoreUnavailable: the origin does not answer.
    """
    garbage = find_garbage(change.session, sizes, only)
    if not dry_run:
        origin.remove(garbage)
        kept = sizes.keys() - garbage.keys()
        of_all = listed_at is not None
        _mark_collected(change, kept=kept, only=None if of_all else only, created_before=listed_at)
    return garbage


class Records(Protocol):
    """Transactions on the records, and the folder of files that they describe."""

    content: ContentStore
    catalog: Catalog
    base: BaseSpec
    server_id: str
    sigstore_trust: Path | None

    def change(self) -> AbstractContextManager[Change]:
        """Run one transaction."""


def drop_content(records: Records, digests: Collection[str], *, at_origin: bool = True) -> None:
    """Remove the files of some digests here and at the origin, unless a version needs them.

    If the origin does not answer, a later collection removes them there. The origin is asked before
    the transaction, which would otherwise keep all other changes waiting.
    """
    content = records.content
    with records.change() as change:
        collect_garbage(change, content, only=digests)
    if content.origin is None or not at_origin:
        return
    try:
        sizes = {digest: content.origin.size_of(digest) or 0 for digest in digests}
        with records.change() as change:
            collect_origin_garbage(change, content.origin, sizes, only=digests)
    except StoreUnavailable as error:
        log.warning("files that no version needs stay at the origin for now: %s", error)


def uncollected_digests(session: Session, tenant: str) -> set[str]:
    """Return the digests of a tenant's rejected and retired versions whose files are still kept."""
    gone = (Version.state.not_in(NEEDS_CONTENT), Version.collected.is_(False))
    query = select(Version.digest).join(Adapter).where(Adapter.tenant == tenant, *gone)
    return set(session.scalars(query))


def prune_rejected(change: Change, before: datetime) -> int:
    """Delete the records of rejected versions from before a time, and of those over 20 an adapter.

    So are those of retired compositions that requests have named: there may be many in a day.
    Returns how many were deleted. Their numbers are not used again.
    """
    columns = select(Version.id, Version.adapter_id, Version.created_at, Version.collected)
    is_over = or_(
        Version.state == VersionState.REJECTED,
        and_(Version.state == VersionState.RETIRED, Adapter.name == ON_REQUEST_NAME),
    )
    rejected = columns.join(Adapter).where(is_over).order_by(Version.id.desc())
    places: Counter[int] = Counter()
    pruned: dict[int, list[int]] = defaultdict(list)
    for version_id, adapter_id, created_at, collected in change.session.execute(rejected):
        places[adapter_id] += 1
        if collected and (places[adapter_id] > MAX_REJECTED or created_at < before):
            pruned[adapter_id].append(version_id)
    for adapter_id, ids in pruned.items():
        change.session.execute(delete(IdempotencyKey).where(IdempotencyKey.version_id.in_(ids)))
        change.session.execute(delete(Version).where(Version.id.in_(ids)))
        change.session.get_one(Adapter, adapter_id).epoch = change.epoch
    return sum(map(len, pruned.values()))


def find_garbage(
    session: Session, sizes: Mapping[str, int], only: Collection[str] | None = None
) -> dict[str, int]:
    """Return the digests, with their bytes, that neither versions nor registrations need."""
    query = select(Version.digest).where(Version.state.in_(NEEDS_CONTENT)).distinct()
    if only is not None:
        query = query.where(Version.digest.in_(only))
    needed = {*session.scalars(query), *session.scalars(protected_digests(session))}
    candidates = sizes if only is None else [digest for digest in only if digest in sizes]
    return {digest: sizes[digest] for digest in candidates if digest not in needed}


def _mark_collected(
    change: Change,
    *,
    kept: Container[str],
    only: Collection[str] | None = None,
    created_before: datetime | None = None,
) -> None:
    """Mark versions out of service as collected if their files are not in `kept` any more."""
    gone = (Version.state.not_in(NEEDS_CONTENT), Version.collected.is_(False))
    query = select(Version.id, Version.digest).where(*gone)
    if only is not None:
        query = query.where(Version.digest.in_(only))
    if created_before is not None:
        query = query.where(Version.created_at < created_before)
    ids = [number for number, digest in change.session.execute(query) if digest not in kept]
    for start in range(0, len(ids), _ROWS_AT_A_TIME):
        some = Version.id.in_(ids[start : start + _ROWS_AT_A_TIME])
        change.session.execute(update(Version).where(some).values(collected=True))
