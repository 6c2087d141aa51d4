"""What the servers on one database report: that they are there, and how warm versions are."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from adapters_registry.records.database import database_time
from adapters_registry.rollout.promotion import Warmth
from adapters_registry.rollout.tables import ServerReport

SILENT_FOR = timedelta(seconds=30)
"""A server that has reported nothing for so long is taken for gone. Nothing waits for it."""
_FORGOTTEN_AFTER = timedelta(days=1)


def report(session: Session, server_id: str, warming: Mapping[int, Warmth]) -> None:
    """Record that a server is there, and what it says of each warm promotion, by its epoch.

    This is not a change of the registry: whoever waits for the reports reads them.
    """
    at = database_time(session)
    said = {str(epoch): warmth.value for epoch, warmth in warming.items()}
    session.merge(ServerReport(id=server_id, seen_at=at, warming=said))
    gone = ServerReport.seen_at < at - _FORGOTTEN_AFTER
    session.execute(delete(ServerReport).where(gone, ServerReport.id != server_id))


def leave(session: Session, server_id: str) -> None:
    """Record that a server ends."""
    session.execute(delete(ServerReport).where(ServerReport.id == server_id))


def read_warmth(session: Session, epoch: int) -> dict[str, Warmth]:
    """Return what each server that is there says of the warm promotion with this epoch."""
    seen = ServerReport.seen_at >= database_time(session) - SILENT_FOR
    rows = session.scalars(select(ServerReport).where(seen).order_by(ServerReport.id))
    return {row.id: Warmth(row.warming.get(str(epoch), Warmth.UNHEARD)) for row in rows}
