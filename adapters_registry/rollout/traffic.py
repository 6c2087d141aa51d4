"""The traffic of both sides of a split, which each process counts and the judge adds up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from adapters_registry.records.database import database_time
from adapters_registry.rollout.arms import ArmCounts
from adapters_registry.rollout.tables import ArmTraffic

KEPT_FOR = timedelta(days=8)
"""Longer than a step may last."""

Arm = tuple[int, int]
"""A version's id, and the `live_revision` of the split in which it was asked."""


def save_traffic(session: Session, process: str, counts: Mapping[Arm, ArmCounts]) -> None:
    """Record what a process has counted so far. It replaces what it recorded before."""
    at = database_time(session)
    for (version_id, revision), counted in sorted(counts.items()):
        row = ArmTraffic(version_id=version_id, revision=revision, process=process, at=at)
        row.counts = counted.to_json()
        session.merge(row)


def read_traffic(
    session: Session, version_ids: Sequence[int], revision: int, since: datetime | None = None
) -> dict[int, ArmCounts]:
    """Return the counts of versions in one split, of all processes together.

    `since` leaves out what is older. A number of a split recurs if its database was restored.
    """
    query = select(ArmTraffic).where(
        ArmTraffic.version_id.in_(version_ids), ArmTraffic.revision == revision
    )
    if since is not None:
        query = query.where(ArmTraffic.at >= since)
    found = {version_id: ArmCounts() for version_id in version_ids}
    for row in session.scalars(query):
        found[row.version_id] += ArmCounts.of(row.counts)
    return found


def prune_traffic(session: Session) -> None:
    """Remove counts that no judge needs any more."""
    session.execute(delete(ArmTraffic).where(ArmTraffic.at < database_time(session) - KEPT_FOR))
