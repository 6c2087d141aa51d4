"""Collections while the server runs: files and records that nothing needs any more."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy import select

from adapters_registry.composition.keeping import retire_unused
from adapters_registry.errors import StoreUnavailable
from adapters_registry.garbage import (
    collect_garbage,
    collect_origin_garbage,
    find_garbage,
    prune_rejected,
)
from adapters_registry.records.database import database_time
from adapters_registry.records.tables import Version
from adapters_registry.registry import Registry

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Collection:
    """What a collection removed: bytes by digest, and the number of rejected versions."""

    disk: dict[str, int] = field(default_factory=dict)
    origin: dict[str, int] = field(default_factory=dict)
    rejected_versions: int = 0


class Collector:
    """Removes files once no version has needed them for a time of grace, here and at the origin.

    The grace counts from when this server first found the files unneeded. Without it a request
    would fail that another server has just resolved to a version which is being retired.
    """

    def __init__(
        self,
        registry: Registry,
        grace: timedelta,
        keep_rejected: timedelta,
        keep_compositions: timedelta = timedelta(hours=1),
    ) -> None:
        """`keep_rejected`: for how long the records of rejected versions are kept.

        `keep_compositions`: for how long compositions that requests name are kept after their last
        use.
        """
        self._registry, self._grace, self._keep_rejected = registry, grace, keep_rejected
        self._keep_compositions = keep_compositions
        self._lock = threading.Lock()
        self._on_disk: dict[str, datetime] = {}
        self._at_origin: dict[str, datetime] = {}
        """Since when each digest is known to be unneeded."""

    def collect(
        self, now: datetime | None = None, *, grace: timedelta | None = None, dry_run: bool = False
    ) -> Collection:
        """Collect once. One call runs at a time.

        `now` is by default the moment by the database's clock: one that is set forward on a server
        must not end the time of grace, for all of them at the origin.
        `grace` replaces the one that was set. With `dry_run` nothing is removed. If the origin does
        not answer, that is logged, and the rest is collected.
        """
        grace = self._grace if grace is None else grace
        now = self._clock() if now is None else now
        if not self._has_versions():
            log.info(
                "nothing is collected: the registry has no version, so it may be the wrong one"
            )
            return Collection()
        with self._lock:
            if not dry_run:
                self._retire_compositions(now)
            disk = self._collect_disk(now, grace, dry_run)
            try:
                origin = self._collect_origin(now, grace, dry_run)
            except StoreUnavailable as error:
                log.warning("the origin cannot be collected: %s", error)
                origin = {}
            before = now - self._keep_rejected
            rejected = 0 if dry_run else self._registry.apply(prune_rejected, before)
        if not dry_run and (disk or origin or rejected):
            log.info(
                "collected %.1f MB here, %.1f MB at the origin, %d rejected versions",
                sum(disk.values()) / 1e6,
                sum(origin.values()) / 1e6,
                rejected,
            )
        return Collection(disk, origin, rejected)

    def _retire_compositions(self, now: datetime) -> None:
        before = now - self._keep_compositions
        if retired := self._registry.apply(retire_unused, before):
            log.info("retired compositions that no request names: %s", ", ".join(retired))

    def _clock(self) -> datetime:
        with self._registry.session() as session:
            return database_time(session)

    def _has_versions(self) -> bool:
        """Return whether there is any version. In a wrong database all files would be garbage."""
        with self._registry.session() as session:
            return session.scalar(select(Version.id).limit(1)) is not None

    def _collect_disk(self, now: datetime, grace: timedelta, dry_run: bool) -> dict[str, int]:
        registry = self._registry
        with registry.session() as session:
            garbage = find_garbage(session, registry.content.sizes())
        self._on_disk = {digest: self._on_disk.get(digest, now) for digest in garbage}
        due = _older_than(grace, self._on_disk, now)
        return registry.apply(collect_garbage, registry.content, only=due, dry_run=dry_run)

    def _collect_origin(self, now: datetime, grace: timedelta, dry_run: bool) -> dict[str, int]:
        registry, origin = self._registry, self._registry.content.origin
        if origin is None:
            return {}
        listed_at, sizes = self._clock(), origin.sizes()
        with registry.session() as session:
            garbage = find_garbage(session, sizes)
        self._at_origin = {digest: self._at_origin.get(digest, now) for digest in garbage}
        return registry.apply(
            collect_origin_garbage,
            origin,
            sizes,
            only=_older_than(grace, self._at_origin, now),
            listed_at=listed_at,
            dry_run=dry_run,
        )


def _older_than(grace: timedelta, since: dict[str, datetime], now: datetime) -> list[str]:
    return [digest for digest, first in since.items() if now - first >= grace]
