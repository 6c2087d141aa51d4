"""The registry's tables (SQLAlchemy 2, declarative).

A version's primary key is also its engine id: the database never hands one out twice, so no two
versions ever share an id in the engine.
"""

from __future__ import annotations

import enum
import uuid
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    String,
    TypeDecorator,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship


def now() -> datetime:
    """Return the present moment, in UTC."""
    return datetime.now(UTC)


def new_id() -> str:
    """Return a random id of 32 hexadecimal digits."""
    return uuid.uuid4().hex


def in_utc(moment: datetime) -> datetime:
    """Return a moment in UTC; if it lies beyond all that UTC can say, the first or the last one."""
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        edge = datetime.min if moment.year == datetime.min.year else datetime.max
        return edge.replace(tzinfo=UTC)


class VersionState(enum.StrEnum):
    """Where a version stands in the registry; only `READY` ones can be served.

    `INCOMPATIBLE` is never stored: it is what a version is to a server on whose base it was not
    accepted, or whose limit of ranks it exceeds (`adapters_registry/compatibility.py`).
    """

    PENDING = "pending"
    CHECKING = "checking"
    READY = "ready"
    REJECTED = "rejected"
    RETIRED = "retired"
    INCOMPATIBLE = "incompatible"


UNDER_CHECK = (VersionState.PENDING, VersionState.CHECKING)
"""The states of a version that the gate has not decided on yet."""


class UTCDateTime(TypeDecorator[datetime]):
    """A moment in UTC. SQLite does not store the time zone, and PostgreSQL answers in its own."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, _dialect: Dialect) -> datetime | None:
        """Return the moment as it is stored."""
        return in_utc(value) if value and value.tzinfo else value

    def process_result_value(self, value: datetime | None, _dialect: Dialect) -> datetime | None:
        """Return the moment with its time zone."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else in_utc(value)


class Base(DeclarativeBase):
    """Base of all tables."""


class Tenant(Base):
    """A tenant, which owns adapters and keys.

    The row of a deleted tenant stays, because its adapters' rows name it. If the name is given to a
    new tenant, the row gets a new `id`. Everything that must not pass to the new owner refers to
    the id.
    """

    __tablename__ = "tenants"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    id: Mapped[str] = mapped_column(String(32), unique=True, default=new_id)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now)
    reused_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    """When the name was given again. Earlier records under it belong to another tenant."""
    deleted: Mapped[bool] = mapped_column(default=False)
    quota: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    suspension: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """See `adapters_registry/records/access/suspension.py`."""
    policy: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    epoch: Mapped[int] = mapped_column(BigInteger)


class Epoch(Base):
    """One row that every change increments first. It makes the writers of all replicas wait for one
    another, and tells the other replicas that something is new."""

    __tablename__ = "epoch"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    value: Mapped[int] = mapped_column(BigInteger)
    mark: Mapped[str] = mapped_column(String(32), default=new_id)
    """The mark of the last change."""


class Mark(Base):
    """What each of the latest changes is known by: a random id.

    The number of a change recurs after a backup is restored, its mark does not. A server that
    knows a change which has another mark here, or none, knows that its memory is not of this
    history.
    """

    __tablename__ = "marks"

    epoch: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    mark: Mapped[str] = mapped_column(String(32))


class Adapter(Base):
    """A named LoRA of one tenant.

    A deleted adapter's row stays as it is. If the name is used again, the adapter gets a new row,
    which is shared with no tenant. `last_number` continues from the old row, because version
    numbers are never reused.
    """

    __tablename__ = "adapters"
    __table_args__ = (
        Index(
            "uq_adapters_tenant_name",
            "tenant",
            "name",
            unique=True,
            sqlite_where=text("deleted = 0"),
            postgresql_where=text("NOT deleted"),
        ),
    )

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    tenant: Mapped[str] = mapped_column(ForeignKey("tenants.name"))
    name: Mapped[str] = mapped_column(String(64))
    last_number: Mapped[int] = mapped_column(Integer, default=0)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now)
    deleted: Mapped[bool] = mapped_column(default=False)
    shared_with: Mapped[list[str]] = mapped_column(JSON, default=list)
    """The names that the owner gave, whether such tenants exist or not."""
    shared_with_ids: Mapped[list[str]] = mapped_column(JSON, default=list)
    """The ids of the tenants that had these names then. Later tenants are not among them."""
    public: Mapped[bool] = mapped_column(default=False)
    suspension: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    live_revision: Mapped[int] = mapped_column(Integer, default=0)
    """How often the alias `live` was pointed elsewhere or removed. It never decreases."""
    warming: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """A promotion that waits until servers have loaded the version (`rollout/promotion.py`)."""
    epoch: Mapped[int] = mapped_column(BigInteger, index=True)
    """The change that touched it last."""

    versions: Mapped[list[Version]] = relationship(
        back_populates="adapter", order_by="Version.number"
    )
    aliases: Mapped[list[Alias]] = relationship(
        back_populates="adapter", cascade="all, delete-orphan"
    )


class Version(Base):
    """An immutable state of an adapter. `id` is also its id in the engine."""

    __tablename__ = "versions"
    __table_args__ = (UniqueConstraint("adapter_id", "number"), {"sqlite_autoincrement": True})

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    adapter_id: Mapped[int] = mapped_column(ForeignKey("adapters.id"))
    number: Mapped[int] = mapped_column(Integer)
    digest: Mapped[str] = mapped_column(String(64), index=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    rank: Mapped[int | None] = mapped_column(Integer)
    state: Mapped[VersionState] = mapped_column(String(16), default=VersionState.PENDING)
    reasons: Mapped[list[dict[str, Any]]] = mapped_column(JSON, default=list)
    source: Mapped[str] = mapped_column(String(1024))
    details: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    promote: Mapped[bool] = mapped_column(default=False)
    pinned: Mapped[bool] = mapped_column(default=False)
    collected: Mapped[bool] = mapped_column(default=False)
    """Whether its files were removed. Until then they count towards the tenant's quota, in any
    state."""
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now)
    live_revision: Mapped[int] = mapped_column(Integer, default=0)
    """The adapter's `live_revision` when promotion was asked for. A change since then cancels the
    promotion."""
    checked_by: Mapped[str | None] = mapped_column(String(64))
    """The server that checks this version, while its state is `checking`."""
    checked_until: Mapped[datetime | None] = mapped_column(UTCDateTime)
    """When that server's lease on the check runs out unless it is renewed."""

    base: Mapped[str | None] = mapped_column(String(64))
    """The fingerprint of the base that it was registered for; None if an earlier release did it."""
    base_verdicts: Mapped[dict[str, dict[str, Any]]] = mapped_column(JSON, default=dict)
    """By the fingerprint of a base: that base's name, and why the version was refused on it."""

    adapter: Mapped[Adapter] = relationship(back_populates="versions")


class Reservation(Base):
    """A part of a tenant's quota that a running registration has reserved.

    `digest` is set before the files go to the origin, so that no collection removes them there.
    """

    __tablename__ = "reservations"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    tenant: Mapped[str] = mapped_column(String(64), index=True)
    adapter: Mapped[str] = mapped_column(String(64))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    digest: Mapped[str | None] = mapped_column(String(64))
    server: Mapped[str] = mapped_column(String(255))
    """Which server's registration it is: that server removes it when it starts again."""
    expires_at: Mapped[datetime] = mapped_column(UTCDateTime)


class Alias(Base):
    """A name that points to versions of an adapter, by weight in per cent.

    `targets` and `previous` are lists of `[version number, weight]`; `revision` counts changes.
    """

    __tablename__ = "aliases"

    adapter_id: Mapped[int] = mapped_column(ForeignKey("adapters.id"), primary_key=True)
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    targets: Mapped[list[list[int]]] = mapped_column(JSON)
    previous: Mapped[list[list[int]] | None] = mapped_column(JSON(none_as_null=True))
    revision: Mapped[int] = mapped_column(Integer)

    adapter: Mapped[Adapter] = relationship(back_populates="aliases")


class AuditEntry(Base):
    """An entry of the audit trail: who changed what, from where, and the state before and after."""

    __tablename__ = "audit"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    at: Mapped[datetime] = mapped_column(UTCDateTime, default=now, index=True)
    actor: Mapped[str] = mapped_column(String(128))
    origin: Mapped[str] = mapped_column(String(64))
    tenant: Mapped[str] = mapped_column(String(64), index=True)
    tenant_id: Mapped[str] = mapped_column(String(32), default="", index=True)
    action: Mapped[str] = mapped_column(String(32))
    subject: Mapped[str] = mapped_column(String(192), index=True)
    before: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    after: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))


class IdempotencyKey(Base):
    """A client's key for one POST, and its result, written in the transaction of the change."""

    __tablename__ = "idempotency_keys"

    caller: Mapped[str] = mapped_column(String(64), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64))
    version_id: Mapped[int | None] = mapped_column(ForeignKey("versions.id"))
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now)


class ApiKey(Base):
    """A key's public part and the salted hash of its secret. The secret itself is not stored."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    tenant: Mapped[str] = mapped_column(ForeignKey("tenants.name"))
    salt: Mapped[str] = mapped_column(String(32))
    secret_sha256: Mapped[str] = mapped_column(String(64))
    scopes: Mapped[list[str]] = mapped_column(JSON)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now)
    label: Mapped[str] = mapped_column(String(64), default="")
    expires_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    last_used_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    replaced_by: Mapped[str | None] = mapped_column(String(16))
    """The id of the key that a rotation has made instead of it."""
    epoch: Mapped[int] = mapped_column(BigInteger)


class SchemaSupport(Base):
    """Which earlier releases can work with this schema, so that a release can be rolled back."""

    __tablename__ = "schema_support"

    oldest: Mapped[str] = mapped_column(String(32), primary_key=True)
    """The newest migration of the oldest release that can. It is the only row."""
