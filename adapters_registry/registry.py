"""The registry: it registers adapters, keeps the gate's verdicts, and knows which adapters exist.

Every change is one transaction on the SQL database. The data that a request needs is kept in memory
as an immutable `Catalog`, so resolving a name does not touch the database.
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
from adapters_registry.check.static_check import AdapterFacts
from adapters_registry.check.stored import check_stored
from adapters_registry.compatibility import ServedBase
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
from adapters_registry.recording import Registration
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
from adapters_registry.records.database import open_database, snapshot
from adapters_registry.records.idempotency import Idempotency
from adapters_registry.records.reservations import release_all
from adapters_registry.records.tables import AuditEntry, Tenant, Version, VersionState
from adapters_registry.records.tenants import no_tenant
from adapters_registry.registration import Intake, open_intake

log = logging.getLogger(__name__)

FAULTS_OF_THE_ENVIRONMENT = (RegistryError, OSError, MemoryError, SQLAlchemyError)
"""Failures of the store, the disk, the memory or the database. They are no verdict on the adapter.
`AdapterRejected` is a `RegistryError` too."""
WRITER_SECONDS = 20

P = ParamSpec("P")
T = TypeVar("T")


class Registry:
    """The records in SQL and the files in `content`, for several threads and processes."""

    def __init__(
        self,
        database_url: str,
        content: ContentStore,
        base: BaseSpec,
        *,
        server_id: str = "",
        former_id: str = "",
        writer_seconds: float = WRITER_SECONDS,
        sigstore_trust: Path | None = None,
    ) -> None:
        """Open the database and bring its schema up to date. Raises what `open_database` raises.

        `server_id` identifies this server in the leases on checks. By default it is a new id.
        `former_id` is the id that this server had before a restart: its checks are continued at
        once, and its reservations end. `writer_seconds` is how long a change waits for the other
        changes of this process. `sigstore_trust` is as in `verify_signature`.
        """
        self._writer_seconds, self.sigstore_trust = writer_seconds, sigstore_trust
        self.server_id = server_id or uuid.uuid4().hex
        self.content = content
        self.base = base
        self.engine = open_database(database_url)
        self._session = sessionmaker(self.engine, expire_on_commit=False)
        self._writing, self._refreshing = threading.Lock(), threading.Lock()
        self._served = ServedBase(base.name, base.fingerprint, base.max_rank)
        self.catalog = Catalog(base=self._served)
        self.on_restored: Callable[[], None] = lambda: None
        """Called, in any thread, when the database was restored from a backup, before the new
        catalog replaces the known one. Known ids may then mean something else."""
        self._refreshed_at = time.monotonic()
        content.clear_staging()
        with self.change() as change:
            for former in {former_id, self.server_id} - {""}:
                release_all(change, former)
                verdicts.inherit(change, former, self.server_id)
            if change.session.get(Tenant, DEFAULT_TENANT) is None:
                change.session.add(Tenant(name=DEFAULT_TENANT, epoch=change.epoch))
            verdicts.adopt_unknown(change)

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
        """Register an adapter's files as its next version, in state `pending`, for the gate.

        `stage` gets an empty directory and writes the two files there. `size_bytes` is their total
        size, if it is known. Returns the version and True. If the adapter already has a version
        with the same content, returns that version and False.

        Raises:
            InvalidName, NotFound: the name is not allowed, or there is no such tenant.
            SourceRefused, StoreUnavailable: `stage` raises them. The origin may raise the latter.
            SignatureRefused, InsufficientStorage, QuotaExceeded, KeyReused: as in `Intake`.
        """
        asked = Registration(tenant, name, source, promote, metadata or {})
        with self.intake() as intake:
            intake.admit(tenant, name, size_bytes, idempotency)
            intake.reserve_disk(size_bytes)
            stage(intake.directory)
            return intake.commit(asked, idempotency)

    def intake(self) -> AbstractContextManager[Intake]:
        """Open a registration that is done in steps. `Intake` describes them."""
        return open_intake(self)

    def check_files(self, version: VersionRecord) -> AdapterFacts:
        """Claim a version, which moves it to state `checking`, and run the static check on it.

        A version that is incompatible with this base may be `ready` for other servers. Its state
        stays the same.

        Raises:
            AdapterRejected: it cannot work on this base. The error holds every reason found.
            CheckedElsewhere: another server is checking it, or has decided on it.
        """
        self._begin_check(version)
        try:
            return check_stored(self.content, version, self.base)
        except FAULTS_OF_THE_ENVIRONMENT:
            raise
        except Exception:
            log.exception("the check of %s failed; it is tried once more", version.public_name)
        try:
            return check_stored(self.content, version, self.base)
        except FAULTS_OF_THE_ENVIRONMENT:
            raise
        except Exception as error:
            # A version on which the check itself fails must neither be served nor tried for ever.
            log.exception("the check of %s failed again", version.public_name)
            message = "the files cannot be checked; the server's log says why"
            raise AdapterRejected([Reason("check_failed", message)]) from error

    def _begin_check(self, version: VersionRecord) -> None:
        if version.state is not VersionState.INCOMPATIBLE:
            digest = self.apply(verdicts.claim, version.version_id, self.server_id).digest
        else:
            known = self.read_version(version.version_id)
            if known is None or known.state is not VersionState.INCOMPATIBLE:
                raise CheckedElsewhere("another server has decided on this version")
            digest = known.digest
        if digest != version.digest:
            raise CheckedElsewhere("the database was restored, and this id is another version's")

    def renew_check(self, version: VersionRecord) -> bool:
        """Extend this server's lease on a check. Returns False if it does not own the check."""
        with self.session() as session:
            return verdicts.renew(session, version.version_id, self.server_id)

    def release_check(self, version: VersionRecord) -> None:
        """Give up a check without a verdict, so that any server may begin it again."""
        self.apply(verdicts.release, version.version_id, self.server_id)

    def accept(self, version: VersionRecord, facts: AdapterFacts) -> VersionRecord:
        """Make a version ready. Make it live if it is the first one, or if that was asked for.

        One whose rank is over the limit is kept for servers with a higher limit, not offered here.
        """
        with self.change() as change:
            if version.state is VersionState.INCOMPATIBLE:
                row = verdicts.accept_again(change, version.version_id, facts)
            elif facts.rank > self.base.max_rank:
                row = verdicts.keep(change, version.version_id, self.server_id, facts)
            else:
                row = verdicts.accept(change, version.version_id, self.server_id, facts)
            return version_record(row, self._served)

    def reject(self, version: VersionRecord, reasons: list[Reason]) -> VersionRecord:
        """Record that the gate refuses a version. The reasons are kept and its content is removed.

        If the version was ready on another base, it stays incompatible with this one, and its
        content is kept.
        """
        with self.change() as change:
            if version.state is VersionState.INCOMPATIBLE:
                row = verdicts.reject_again(change, version.version_id, reasons)
                return version_record(row, self._served)
            row = verdicts.reject(change, version.version_id, self.server_id, reasons)
            rejected = version_record(row, self._served)
        drop_content(self, [version.digest])
        return rejected

    def unfinished(self) -> list[VersionRecord]:
        """Return the registered versions that this server may check now, the oldest first.

        Versions that another server is checking are left out while its lease runs.
        """
        with self._session() as session:
            rows = verdicts.unfinished(session, self.server_id, self._served)
            return [version_record(row, self._served) for row in rows]

    def read_version(self, version_id: int) -> VersionRecord | None:
        """Read a version in any state from the database. Returns None if there is none."""
        with self._session() as session:
            row = session.get(Version, version_id, options=[joinedload(Version.adapter)])
            return version_record(row, self._served) if row else None

    def apply(
        self, operation: Callable[Concatenate[Change, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run an operation, as those of `aliases`, in one transaction. Passes on its errors."""
        with self.change() as change:
            return operation(change, *args, **kwargs)

    def get_adapter(self, tenant: str, name: str) -> AdapterRecord:
        """Return an adapter with the versions that are served or may be served later.

        Raises:
            NotFound: there is no such adapter.
        """
        try:
            return self.catalog.adapters[(tenant, name)]
        except KeyError:
            raise NotFound(f"there is no adapter {tenant}/{name}") from None

    def get_version(self, tenant: str, name: str, number: int) -> VersionRecord:
        """Return a version in any state. Raises `NotFound` if there is none."""
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
        """Read an adapter's versions in any state, the newest first. See `history.read_history`."""
        with self._session() as session:
            return history.read_history(
                session, self._served, tenant, name, before=before, limit=limit
            )

    def newest_versions(self, adapters: Sequence[AdapterRecord]) -> dict[str, VersionRecord]:
        """Return the newest version of each adapter, in any state, by `tenant/name`."""
        names = [(adapter.tenant, adapter.name) for adapter in adapters]
        with self._session() as session:
            return history.newest_versions(session, self._served, names)

    def find_adapters(self, state: VersionState) -> set[tuple[str, str]]:
        """Return tenant and name of every adapter with a version in this state, on this base."""
        if state not in (VersionState.REJECTED, VersionState.RETIRED):
            return self.catalog.adapters_in_state(state)
        with self._session() as session:
            return history.adapters_in_state(session, state)

    def _read_number(self, tenant: str, name: str, number: int) -> VersionRecord | None:
        with self._session() as session:
            return history.read_version(session, self._served, tenant, name, number)

    def require_tenant(self, tenant: str) -> None:
        """Raise `NotFound` if the tenant does not exist."""
        if tenant not in self.catalog.tenants:
            raise no_tenant(tenant)

    def audit(self, **filters: Any) -> list[AuditEntry]:
        """Return the newest entries of the audit trail, with the filters of `read_entries`."""
        with self._session() as session:
            return read_entries(session, **filters)

    @property
    def stale_seconds(self) -> float:
        """Return how many seconds ago the catalog was last compared with the database."""
        return time.monotonic() - self._refreshed_at

    def close(self) -> None:
        """Close the database connections."""
        self.engine.dispose()

    def refresh(self) -> None:
        """Read what other processes have changed. This is cheap if nothing has changed.

        It has a lock of its own, because the catalog must learn of revoked keys even while a writer
        waits for the database.
        """
        with self._refreshing, snapshot(self._session) as session:
            started = time.monotonic()
            known = self.catalog
            if has_diverged(session, known):
                log.error("the registry's database was restored: everything is read again")
                self.on_restored()
                known = Catalog(base=self._served)
            self.catalog = read_changes(session, known)
            self._refreshed_at = started

    @contextmanager
    def session(self) -> Iterator[Session]:
        """Open a transaction of which other servers need not be told."""
        with self._session.begin() as session:
            yield session

    @contextmanager
    def change(self) -> Iterator[Change]:
        """Open a transaction for a change. Afterwards the catalog shows the change.

        Do only SQL inside it, because the writers of all servers wait for each other.

        Raises:
            RegistryBusy: other writers of this process did not finish in time.
        """
        if not self._writing.acquire(timeout=self._writer_seconds):
            raise RegistryBusy("too many changes wait for the registry's database: try again")
        try:
            with self._session.begin() as session:
                yield Change.begin(session, self._served)
        finally:
            self._writing.release()
        self.refresh()
