"""What the servers on one database say of warm promotions: how warm their versions are."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import select
from sqlalchemy.orm import Session

from adapters_registry.records.database import database_time
from adapters_registry.records.servers import AWAY_AFTER, write_report
from adapters_registry.rollout.promotion import Warmth
from adapters_registry.rollout.tables import ServerReport


def report_warmth(session: Session, server_id: str, warming: Mapping[int, Warmth]) -> None:
    """Record what a server says of each warm promotion, by its epoch.

    This is not a change of the registry: whoever waits for the reports reads them.
    """
    said = {str(epoch): warmth.value for epoch, warmth in warming.items()}
    write_report(session, server_id, {"seen_at": database_time(session), "warming": said}, {})


def read_warmth(session: Session, epoch: int) -> dict[str, Warmth]:
    """Return what each server that is there says of the warm promotion with this epoch."""
    seen = ServerReport.seen_at >= database_time(session) - AWAY_AFTER
    rows = session.scalars(select(ServerReport).where(seen).order_by(ServerReport.id))
    return {row.id: Warmth(row.warming.get(str(epoch), Warmth.UNHEARD)) for row in rows}
