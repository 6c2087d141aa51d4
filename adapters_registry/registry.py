"""The registry: takes adapters in, keeps the gate's verdicts, answers what there is.

Every change is one transaction on the SQL database. What a request needs is kept in memory as an
immutable `Catalog`: resolving touches no database.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, joinedload, sessionmaker

from adapters_registry import history, verdicts
from adapters_registry.check.base import BaseSpec
from adapters_registry.check.static_check import AdapterFacts, check_adapter
from adapters_registry.content.store import ContentStore
from adapters_registry.errors import (
    AdapterRejected,
    CheckedElsewhere,
    NotFound,
    Reason,
    RegistryBusy,
    RegistryError,
)
from adapters_registry.garbage import drop_content
from adapters_registry.names import DEFAULT_TENANT
from adapters_registry.records.audit import read_entries
from adapters_registry.records.catalog import (
    AdapterRecord,
    Catalog,
    VersionRecord,
    has_diverged,
    read_changes,
    version_record,
)
from adapters_registry.records.change import Change
from adapters_registry.records.database import open_database
from adapters_registry.records.idempotency import Idempotency
from adapters_registry.records.reservations import release_all
from adapters_registry.records.tables import AuditEntry, Tenant, Version, VersionState
from adapters_registry.records.tenants import no_tenant
from adapters_registry.registration import (
    Intake,
    Registration,
    open_intake,
)

log = logging.getLogger(__name__)

ALLOW_BASE_MISMATCH = "allow_base_mismatch"
"""The entry of a version's metadata that lets it pass though it names another base."""

FAULTS_OF_THE_ENVIRONMENT = (RegistryError, OSError, MemoryError, SQLAlchemyError)
"""Failures of a check that say nothing of the adapter, except `AdapterRejected`: the store, the
disk, the memory, the database."""
WRITER_SECONDS = 20

P = ParamSpec("P")
T = TypeVar("T")


class Registry:
    """Records in SQL, content in `content`; safe to use from several threads and processes."""

    def __init__(
        self,
        database_url: str,
        content: ContentStore,
        base: BaseSpec,
        *,
        server_id: str = "",
        writer_seconds: float = WRITER_SECONDS,
    ) -> None:
        """Open the database and bring its schema up to date; errors as in `open_database`.

        `server_id` says which server this is in the leases on checks. A server that comes back
        with the id of its earlier life continues its checks at once; by default the id is new.
        `writer_seconds` is how long a change waits for the other changes of this process.
        """
        self._writer_seconds = writer_seconds
        self.server_id = server_id or uuid.uuid4().hex
        self.content = content
        self.base = base
        self.engine = open_database(database_url)
        self._session = sessionmaker(self.engine, expire_on_commit=False)
        self._writing, self._refreshing = threading.Lock(), threading.Lock()
        self.catalog = Catalog()
        self.on_restored: Callable[[], None] = lambda: None
        """Is called, in any thread, before a catalog of another history takes the place of the
        one that was known: ids that were known may now mean something else."""
        self._refreshed_at = time.monotonic()
        content.clear_staging()
        with self.change() as change:
            release_all(change, self.server_id)
            if change.session.get(Tenant, DEFAULT_TENANT) is None:
                change.session.add(Tenant(name=DEFAULT_TENANT, epoch=change.epoch))

    def register(
        self,
        tenant: str,
        name: str,
        source: str,
        stage: Callable[[Path], None],
        *,
        size_bytes: int = 0,
        promote: bool = False,
        metadata: dict[str, Any] | None = None,
        idempotency: Idempotency | None = None,
    ) -> tuple[VersionRecord, bool]:
        """Take in an adapter's files as the next version, in state `pending`; the gate comes next.

        `stage` is given an empty directory and puts the two files there, `size_bytes` in all where
        that is known. Content that is a version of this adapter already is not doubled: that
        version is returned, and False.

        Raises:
            InvalidName, NotFound: the name isn't allowed, or there is no such tenant.
            SourceRefused, StoreUnavailable: from `stage`; the latter from the origin, too.
            InsufficientStorage: the disk, or the budget for it, is full.
            QuotaExceeded: the tenant may have no more.
            KeyReused: the idempotency key came with another request before.
        """
        asked = Registration(tenant, name, source, promote, metadata or {})
        with self.intake() as intake:
            intake.admit(tenant, name, size_bytes, idempotency)
            intake.reserve_disk(size_bytes)
            stage(intake.directory)
            return intake.commit(asked, idempotency)

    def intake(self) -> AbstractContextManager[Intake]:
        """Open a registration that is done step by step; see `Intake`."""
        return open_intake(self)

    def check_files(self, version: VersionRecord) -> AdapterFacts:
        """Run the gate's static part on a version, which is in state `checking` from here.

        Raises:
            AdapterRejected: it can't work on this base; holds every reason found.
        """
        row = self.apply(verdicts.claim, version.version_id, self.server_id)
        if row.digest != version.digest:
            raise CheckedElsewhere("the database was restored, and this id is another version's")
        try:
            return self._check_content(version)
        except FAULTS_OF_THE_ENVIRONMENT:
            raise
        except Exception:
            log.exception("the check of %s failed; it is tried once more", version.public_name)
        try:
            return self._check_content(version)
        except FAULTS_OF_THE_ENVIRONMENT:
            raise
        except Exception as error:
            # What the check stumbles over must not be served, and must not be tried for ever.
            log.exception("the check of %s failed again", version.public_name)
            message = "the files cannot be checked; the server's log says why"
            raise AdapterRejected([Reason("check_failed", message)]) from error

    def _check_content(self, version: VersionRecord) -> AdapterFacts:
        with self.content.holding(version.digest) as path:
            return check_adapter(
                path,
                self.base,
                allow_base_mismatch=version.metadata.get(ALLOW_BASE_MISMATCH) is True,
            )

    def renew_check(self, version: VersionRecord) -> bool:
        """Extend this server's lease on a check; returns False if it does not own the check."""
        with self.session() as session:
            return verdicts.renew(session, version.version_id, self.server_id)

    def release_check(self, version: VersionRecord) -> None:
        """Give up a check without a verdict, so that any server may begin it again."""
        self.apply(verdicts.release, version.version_id, self.server_id)

    def accept(self, version: VersionRecord, facts: AdapterFacts) -> VersionRecord:
        """The gate lets a version pass: it is ready, and live if it is the first or asked to be."""
        with self.change() as change:
            row = verdicts.accept(change, version.version_id, self.server_id, facts)
            return version_record(row)

    def reject(self, version: VersionRecord, reasons: list[Reason]) -> VersionRecord:
        """The gate refuses a version, which is kept with the reasons; its content is not."""
        with self.change() as change:
            row = verdicts.reject(change, version.version_id, self.server_id, reasons)
            rejected = version_record(row)
        drop_content(self, [version.digest])
        return rejected

    def unfinished(self) -> list[VersionRecord]:
        """Versions that were acknowledged and that this server may check now, oldest first.

        A version on which another server's lease runs is not among them.
        """
        with self._session() as session:
            rows = verdicts.unfinished(session, self.server_id)
            return [version_record(row) for row in rows]

    def read_version(self, version_id: int) -> VersionRecord | None:
        """Read a version from the database, in whichever state it is; None if there is none."""
        with self._session() as session:
            row = session.get(Version, version_id, options=[joinedload(Version.adapter)])
            return version_record(row) if row else None

    def apply(
        self, operation: Callable[Concatenate[Change, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run an operation of `aliases` or `retirement` as one transaction; errors are its own."""
        with self.change() as change:
            return operation(change, *args, **kwargs)

    def get_adapter(self, tenant: str, name: str) -> AdapterRecord:
        """One adapter with the versions that are, or may come to be, served.

        Raises:
            NotFound: there is no such adapter.
        """
        try:
            return self.catalog.adapters[(tenant, name)]
        except KeyError:
            raise NotFound(f"there is no adapter {tenant}/{name}") from None

    def get_version(self, tenant: str, name: str, number: int) -> VersionRecord:
        """One version; `NotFound` if there is none."""
        adapter = self.get_adapter(tenant, name)
        version = adapter.versions.get(number)
        if version is None:
            version = self._read_number(tenant, name, number)
        if version is None:
            raise NotFound(f"adapter {tenant}/{name} has no version {number}")
        return version

    def read_history(
        self, tenant: str, name: str, *, before: int | None = None, limit: int = 100
    ) -> list[VersionRecord]:
        """Versions of an adapter in any state, newest first, as `history.read_history`."""
        with self._session() as session:
            return history.read_history(session, tenant, name, before=before, limit=limit)

    def newest_versions(self, adapters: Sequence[AdapterRecord]) -> dict[str, VersionRecord]:
        """The newest version of each of these adapters, in any state, by `tenant/name`."""
        names = [(adapter.tenant, adapter.name) for adapter in adapters]
        with self._session() as session:
            return history.newest_versions(session, names)

    def find_adapters(self, state: VersionState) -> set[tuple[str, str]]:
        """Tenant and name of every adapter that has a version in this state."""
        with self._session() as session:
            return history.adapters_in_state(session, state)

    def _read_number(self, tenant: str, name: str, number: int) -> VersionRecord | None:
        with self._session() as session:
            return history.read_version(session, tenant, name, number)

    def require_tenant(self, tenant: str) -> None:
        """Raise `NotFound` unless the tenant exists."""
        if tenant not in self.catalog.tenants:
            raise no_tenant(tenant)

    def audit(self, **filters: Any) -> list[AuditEntry]:
        """The newest entries of the audit trail; filters as in `audit.read_entries`."""
        with self._session() as session:
            return read_entries(session, **filters)

    @property
    def stale_seconds(self) -> float:
        """How long ago the catalog was known to be what the database says."""
        return time.monotonic() - self._refreshed_at

    def close(self) -> None:
        """Close the database connections."""
        self.engine.dispose()

    def refresh(self) -> None:
        """Read what other processes have changed; cheap when that is nothing.

        It has a lock of its own: a writer that waits for the database must not keep the catalog
        from learning of revoked keys.
        """
        with self._refreshing, self._session() as session:
            started = time.monotonic()
            known = self.catalog
            if has_diverged(session, known):
                log.error("the registry's database was restored: everything is read again")
                self.on_restored()
                known = Catalog()
            self.catalog = read_changes(session, known)
            self._refreshed_at = started

    @contextmanager
    def session(self) -> Iterator[Session]:
        """A transaction that is no change: other servers needn't know of it."""
        with self._session.begin() as session:
            yield session

    @contextmanager
    def change(self) -> Iterator[Change]:
        """One transaction, after which the catalog shows what it changed.

        Nothing but SQL belongs inside: all servers' writers wait for each other.

        Raises:
            RegistryBusy: other writers of this process did not finish in time.
        """
        if not self._writing.acquire(timeout=self._writer_seconds):
            raise RegistryBusy("too many changes wait for the registry's database: try again")
        try:
            with self._session.begin() as session:
                yield Change.begin(session)
        finally:
            self._writing.release()
        self.refresh()
