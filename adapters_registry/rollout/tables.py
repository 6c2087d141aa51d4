"""The tables of rollouts: what servers report, judged canaries, and the traffic of both sides."""

from __future__ import annotations

import enum
from datetime import datetime
from typing import Any

from sqlalchemy import JSON, ForeignKey, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from adapters_registry.records.tables import Adapter, Base, UTCDateTime, now


class ServerReport(Base):
    """A server on this database, and what it said last."""

    __tablename__ = "servers"

    id: Mapped[str] = mapped_column(String(255), primary_key=True)
    seen_at: Mapped[datetime] = mapped_column(UTCDateTime)
    warming: Mapped[dict[str, str]] = mapped_column(JSON, default=dict)
    """By the epoch of a warm promotion: what the server says of it (`Warmth`)."""
    name: Mapped[str] = mapped_column(String(255), default="")
    """Its host and port; empty until it has said them."""
    started_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    figures: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """What it holds and does (`records/servers.py`)."""


class CanaryState(enum.StrEnum):
    """Where a judged canary stands."""

    RUNNING = "running"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled back"
    ENDED = "ended"
    """`live` was moved by somebody else, who then decides."""


class JudgedCanary(Base):
    """A canary that grows by steps, as long as the comparison with the live version allows it."""

    __tablename__ = "judged_canaries"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    adapter_id: Mapped[int] = mapped_column(ForeignKey("adapters.id"), index=True)
    number: Mapped[int] = mapped_column(Integer)
    """The canary's version."""
    live_number: Mapped[int] = mapped_column(Integer)
    """The version that was live before, with which it is compared."""
    plan: Mapped[dict[str, Any]] = mapped_column(JSON)
    examples: Mapped[list[dict[str, Any]]] = mapped_column(JSON, default=list, deferred=True)
    """Held-out conversations, if there are any. They are removed at the canary's end."""
    state: Mapped[CanaryState] = mapped_column(String(16), default=CanaryState.RUNNING, index=True)
    step: Mapped[int] = mapped_column(Integer, default=0)
    """The index of the present step in the plan."""
    revision: Mapped[int] = mapped_column(Integer)
    """The adapter's `live_revision` of the step. Traffic is counted by it."""
    step_at: Mapped[datetime] = mapped_column(UTCDateTime)
    look_at: Mapped[datetime] = mapped_column(UTCDateTime)
    """When the step is judged next."""
    finding: Mapped[str] = mapped_column(String(32), default="")
    """What the last judgement found, as a code."""
    reason: Mapped[str] = mapped_column(Text, default="")
    """The same in words."""
    evidence: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    """The numbers of the last judgement."""
    scores: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """How both versions answer the held-out conversations."""
    claimed_by: Mapped[str | None] = mapped_column(String(255))
    """The server that judges it."""
    claimed_until: Mapped[datetime | None] = mapped_column(UTCDateTime)
    """When that server's lease runs out unless it is renewed."""
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now)
    ended_at: Mapped[datetime | None] = mapped_column(UTCDateTime)

    adapter: Mapped[Adapter] = relationship()


class ArmTraffic(Base):
    """What one process has counted of one version's requests in one split of `live`."""

    __tablename__ = "arm_traffic"

    version_id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    revision: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    """The adapter's `live_revision` of the split."""
    process: Mapped[str] = mapped_column(String(32), primary_key=True)
    counts: Mapped[dict[str, Any]] = mapped_column(JSON)
    """An `ArmCounts` of all requests so far."""
    at: Mapped[datetime] = mapped_column(UTCDateTime, index=True)
