"""The registry: registers adapters, checks them, remembers them, answers what a name means.

Every change is one transaction on the SQL database. What a request needs is kept in memory as an
immutable `Catalog`, replaced as a whole after each change: resolving touches no database.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, event, func, select
from sqlalchemy.orm import Session, selectinload, sessionmaker

from adapters_registry import migrations
from adapters_registry.base import BaseSpec
from adapters_registry.check import check_adapter
from adapters_registry.content import ContentStore
from adapters_registry.errors import AdapterRejected, NotFound, Reason
from adapters_registry.models import Adapter, Alias, Tenant, Version, VersionState
from adapters_registry.names import DEFAULT_TENANT, LIVE, check_name

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class VersionRecord:
    """An immutable version, as the rest of the program sees it."""

    tenant: str
    name: str
    number: int
    digest: str
    engine_id: int
    state: VersionState
    rank: int | None
    size_bytes: int
    reasons: list[dict[str, Any]]
    source: str
    metadata: dict[str, Any]
    created_at: datetime

    @property
    def adapter_id(self) -> str:
        """`tenant/name`."""
        return f"{self.tenant}/{self.name}"

    @property
    def public_name(self) -> str:
        """`tenant/name@3`: what responses, and the engine, call it."""
        return f"{self.adapter_id}@{self.number}"


@dataclass(frozen=True)
class AdapterRecord:
    """An adapter with its versions by number, and its aliases."""

    tenant: str
    name: str
    created_at: datetime
    versions: dict[int, VersionRecord]
    aliases: dict[str, int]

    @property
    def live(self) -> VersionRecord | None:
        """The version that the bare name means, if any is ready."""
        return self.ready.get(self.aliases.get(LIVE, 0))

    @property
    def ready(self) -> dict[int, VersionRecord]:
        """The versions that can be served."""
        return {n: v for n, v in self.versions.items() if v.state is VersionState.READY}


@dataclass(frozen=True)
class Catalog:
    """All adapters at one moment, by (tenant, name)."""

    adapters: dict[tuple[str, str], AdapterRecord] = field(default_factory=dict)


class Registry:
    """Records in SQL, content in `content`; safe to use from several threads."""

    def __init__(self, database_url: str, content: ContentStore, base: BaseSpec) -> None:
        """Open the database, bring its schema up to date, and finish interrupted checks."""
        self.content = content
        self.base = base
        self.engine = _open(database_url)
        migrations.upgrade(self.engine)
        self._session = sessionmaker(self.engine, expire_on_commit=False)
        self._change_lock = threading.RLock()
        self.catalog = Catalog()
        content.clear_staging()
        with self._change() as session:
            if session.get(Tenant, DEFAULT_TENANT) is None:
                session.add(Tenant(name=DEFAULT_TENANT))
        self._finish_interrupted_checks()

    def register(
        self,
        tenant: str,
        name: str,
        source: str,
        stage: Callable[[Path], None],
        *,
        promote: bool = False,
        metadata: dict[str, Any] | None = None,
    ) -> tuple[VersionRecord, bool]:
        """Take in an adapter's files as the next version, in state `pending`; `check` comes next.

        `stage` is given an empty directory and puts the two files there. Content that is a version
        of this adapter already is not doubled: that version is returned, and False.

        Raises:
            InvalidName, NotFound: the name isn't allowed, or there is no such tenant.
            SourceRefused: from `stage`.
        """
        check_name(name, "adapter")
        self.require_tenant(check_name(tenant, "tenant"))
        with self.content.staging() as staged:
            stage(staged)
            digest, size_bytes = self.content.commit(staged)
        with self._change() as session:
            adapter = self._adapter_row(session, tenant, name)
            for known in adapter.versions:
                if known.digest == digest and known.state != VersionState.REJECTED:
                    if promote and known.state == VersionState.READY:
                        _point(session, adapter, LIVE, known.number)
                    known.promote = known.promote or promote
                    return _record(known), False
            adapter.last_number += 1
            version = Version(
                adapter=adapter,
                number=adapter.last_number,
                digest=digest,
                size_bytes=size_bytes,
                source=source[:1024],
                state=VersionState.PENDING,
                promote=promote,
                details=metadata or {},
            )
            session.add(version)
            session.flush()
            return _record(version), True

    def check(self, version: VersionRecord) -> VersionRecord:
        """Run the gate on a pending version; it becomes ready (perhaps live) or rejected."""
        self._set_state(version.engine_id, VersionState.CHECKING)
        try:
            facts = check_adapter(self.content.path(version.digest), self.base)
        except AdapterRejected as rejection:
            return self._reject(version.engine_id, rejection.reasons)
        except Exception:
            # What the gate stumbles over must neither be served nor keep the server from starting.
            log.exception("checking %s failed", version.public_name)
            reason = Reason("check_failed", "the files can't be checked; the server's log says why")
            return self._reject(version.engine_id, [reason])
        with self._change() as session:
            row = session.get_one(Version, version.engine_id)
            row.state, row.rank = VersionState.READY, facts.rank
            row.details = {**row.details, "checked": asdict(facts)}
            if row.promote or not any(alias.name == LIVE for alias in row.adapter.aliases):
                _point(session, row.adapter, LIVE, row.number)
            return _record(row)

    def get_adapter(self, tenant: str, name: str) -> AdapterRecord:
        """One adapter with all its versions; `NotFound` if there is none."""
        try:
            return self.catalog.adapters[(tenant, name)]
        except KeyError:
            raise NotFound(f"there is no adapter {tenant}/{name}") from None

    def get_version(self, tenant: str, name: str, number: int) -> VersionRecord:
        """One version; `NotFound` if there is none."""
        version = self.get_adapter(tenant, name).versions.get(number)
        if version is None:
            raise NotFound(f"adapter {tenant}/{name} has no version {number}")
        return version

    def require_tenant(self, tenant: str) -> None:
        """Raise `NotFound` unless the tenant exists."""
        with self._session() as session:
            if session.get(Tenant, tenant) is None:
                raise NotFound(f"there is no tenant {tenant!r}")

    def count_versions(self) -> dict[str, int]:
        """How many versions there are in each state."""
        with self._session() as session:
            rows = session.execute(select(Version.state, func.count()).group_by(Version.state))
            counts = {str(state): int(count) for state, count in rows}
        return {state.value: counts.get(state.value, 0) for state in VersionState}

    def ping(self) -> None:
        """Raise SQLAlchemy's error if the database doesn't answer."""
        with self._session() as session:
            session.execute(select(1))

    def close(self) -> None:
        """Close the database connections."""
        self.engine.dispose()

    @contextmanager
    def session(self) -> Iterator[Session]:
        """A transaction for a neighbour's table (the API keys)."""
        with self._session.begin() as session:
            yield session

    @contextmanager
    def _change(self) -> Iterator[Session]:
        """One transaction, after which the catalog shows what it changed."""
        with self._change_lock:
            with self._session.begin() as session:
                yield session
            self.catalog = self._read_catalog()

    def _set_state(self, engine_id: int, state: VersionState) -> None:
        with self._change() as session:
            session.get_one(Version, engine_id).state = state

    def _reject(self, engine_id: int, reasons: list[Reason]) -> VersionRecord:
        with self._change() as session:
            row = session.get_one(Version, engine_id)
            row.state = VersionState.REJECTED
            row.reasons = [asdict(reason) for reason in reasons]
            return _record(row)

    def _adapter_row(self, session: Session, tenant: str, name: str) -> Adapter:
        query = select(Adapter).where(Adapter.tenant == tenant, Adapter.name == name)
        adapter = session.scalar(query)
        if adapter is None:
            adapter = Adapter(tenant=tenant, name=name, last_number=0)
            session.add(adapter)
            session.flush()
        return adapter

    def _read_catalog(self) -> Catalog:
        with self._session() as session:
            adapters = {
                (row.tenant, row.name): AdapterRecord(
                    tenant=row.tenant,
                    name=row.name,
                    created_at=row.created_at,
                    versions={version.number: _record(version) for version in row.versions},
                    aliases={alias.name: alias.number for alias in row.aliases},
                )
                for row in session.scalars(_ALL_ADAPTERS)
            }
        return Catalog(adapters)

    def _finish_interrupted_checks(self) -> None:
        """A version acknowledged before a crash is checked now, so that it isn't lost."""
        unfinished = (VersionState.PENDING, VersionState.CHECKING)
        for adapter in self.catalog.adapters.values():
            for version in adapter.versions.values():
                if version.state in unfinished:
                    self.check(version)


_ALL_ADAPTERS = (
    select(Adapter)
    .order_by(Adapter.tenant, Adapter.name)
    .options(
        selectinload(Adapter.versions).joinedload(Version.adapter), selectinload(Adapter.aliases)
    )
)


def _open(database_url: str) -> Engine:
    engine = create_engine(database_url)
    if engine.dialect.name == "sqlite":

        @event.listens_for(engine, "connect")
        def configure(connection: Any, _record: Any) -> None:
            # WAL: readers don't wait for the writer. FULL: a commit survives power loss.
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
                connection.execute(f"PRAGMA {pragma}")
            connection.execute("PRAGMA busy_timeout=5000")

    return engine


def _point(session: Session, adapter: Adapter, alias: str, number: int) -> None:
    session.merge(Alias(adapter_id=adapter.id, name=alias, number=number))
    session.flush()
    session.expire(adapter, ["aliases"])


def _record(row: Version) -> VersionRecord:
    return VersionRecord(
        tenant=row.adapter.tenant,
        name=row.adapter.name,
        number=row.number,
        digest=row.digest,
        engine_id=row.id,
        state=VersionState(row.state),
        rank=row.rank,
        size_bytes=row.size_bytes,
        reasons=row.reasons or [],
        source=row.source,
        metadata=row.details or {},
        created_at=row.created_at,
    )
