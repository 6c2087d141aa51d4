"""Garbage: content that no version needs any more. Operations for `Registry.apply`.

Versions and collections are transactions of the same line (`Change.begin`), and a version's
content appears within its own: so a collection never takes what is just being registered, not
even on another replica.
"""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import select

from adapters_registry.content.origin import Origin
from adapters_registry.content.store import ContentStore
from adapters_registry.records.change import Change
from adapters_registry.records.tables import Version, VersionState

NEEDS_CONTENT = (VersionState.PENDING, VersionState.CHECKING, VersionState.READY)


def collect_garbage(
    change: Change,
    content: ContentStore,
    *,
    only: Collection[str] | None = None,
    dry_run: bool = False,
) -> dict[str, int]:
    """Remove local content that no version needs and nobody holds; the bytes of each digest.

    `only` limits it to these digests; with `dry_run` nothing is removed.
    """
    garbage = _unneeded(change, content.sizes(), only)
    return {digest: n for digest, n in garbage.items() if dry_run or content.discard(digest)}


def collect_origin_garbage(
    change: Change, origin: Origin, sizes: dict[str, int], *, dry_run: bool = False
) -> dict[str, int]:
    """Remove from the origin, for all replicas, what no version needs; the bytes of each digest.

    `sizes` is `origin.sizes()`, asked for before the transaction: it takes long.

    Raises:
        StoreUnavailable: the origin doesn't answer.
    """
    garbage = _unneeded(change, sizes)
    if not dry_run:
        origin.remove(garbage)
    return garbage


def _unneeded(
    change: Change, sizes: dict[str, int], only: Collection[str] | None = None
) -> dict[str, int]:
    query = select(Version.digest).where(Version.state.in_(NEEDS_CONTENT)).distinct()
    if only is not None:
        query = query.where(Version.digest.in_(only))
    needed = set(change.session.scalars(query))
    candidates = sizes if only is None else [digest for digest in only if digest in sizes]
    return {digest: sizes[digest] for digest in candidates if digest not in needed}
