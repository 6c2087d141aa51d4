"""Exports and removes old audit entries and usage when an operator asks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from adapters_registry.names import DEFAULT_TENANT
from adapters_registry.records.audit import write_entry
from adapters_registry.records.tables import AuditEntry
from adapters_registry.records.usage.recording import remove_oldest_day
from adapters_registry.records.usage.tables import Usage

_ROWS_AT_A_TIME = 1000
_IDS_AT_A_TIME = 5000

Transactions = Callable[[], AbstractContextManager[Session]]
"""Opens one transaction. Rows are removed in many transactions, each of them short."""


class Pruned(NamedTuple):
    """How many rows were removed."""

    audit: int
    usage: int


def export(session: Session, before: datetime) -> Iterator[dict[str, Any]]:
    """Yield audit entries and usage from before a time, the oldest first, as JSON values."""
    for table, moment in ((AuditEntry.__table__, AuditEntry.at), (Usage.__table__, Usage.hour)):
        rows = select(table).where(moment < before).order_by(moment)
        options = {"yield_per": _ROWS_AT_A_TIME}
        for row in session.execute(rows, execution_options=options).mappings():
            yield {"table": table.description} | {k: _plain(v) for k, v in row.items()}


def prune(transactions: Transactions, before: datetime) -> Pruned:
    """Remove audit entries and usage from before a time, and record that in the audit trail."""
    pruned = Pruned(_prune_audit(transactions, before), _prune_usage(transactions, before))
    if any(pruned):
        removed = {"before": before.isoformat(), **pruned._asdict()}
        with transactions() as session:
            write_entry(session, "registry.prune", DEFAULT_TENANT, "registry", None, removed)
    return pruned


def _prune_audit(transactions: Transactions, before: datetime) -> int:
    old = AuditEntry.at < before
    with transactions() as session:
        first = session.scalar(select(func.min(AuditEntry.id)).where(old))
        last = session.scalar(select(func.max(AuditEntry.id)).where(old))
    num_deleted = 0
    for start in range(first or 0, (last or -1) + 1, _IDS_AT_A_TIME):
        some = AuditEntry.id.between(start, start + _IDS_AT_A_TIME - 1)
        with transactions() as session:
            num_deleted += _num_deleted(session, delete(AuditEntry).where(some, old))
    return num_deleted


def _prune_usage(transactions: Transactions, before: datetime) -> int:
    num_deleted = 0
    while True:
        with transactions() as session:
            num_of_day = remove_oldest_day(session, before)
        if not num_of_day:
            return num_deleted
        num_deleted += num_of_day


def _num_deleted(session: Session, statement: Any) -> int:
    return int(session.connection().execute(statement).rowcount)


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value
