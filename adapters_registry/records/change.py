"""A change of the registry: one transaction, one step of the epoch, entries in the audit trail."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, insert, select, update
from sqlalchemy.orm import Session

from adapters_registry.compatibility import UNKNOWN_BASE, ServedBase
from adapters_registry.errors import NotFound
from adapters_registry.records.audit import write_entry
from adapters_registry.records.tables import Adapter, Epoch, Mark, Version, new_id

MARKS_KEPT = 10_000
"""Of the latest changes; a server that is further behind reads everything again."""


def is_number(number: int) -> bool:
    """Return whether a version can have this number. The database does not take larger numbers."""
    return 0 < number < 1 << 31


@dataclass(frozen=True)
class Change:
    """The running transaction. Rows that it changes get its epoch, so that replicas find them."""

    session: Session
    epoch: int
    base: ServedBase = UNKNOWN_BASE
    """The base of the server that makes the change."""

    @classmethod
    def begin(cls, session: Session, base: ServedBase = UNKNOWN_BASE) -> Change:
        """Take the next epoch: from here to the commit, any other writer waits."""
        mark = new_id()
        bump = update(Epoch).values(value=Epoch.value + 1, mark=mark).returning(Epoch.value)
        epoch = session.execute(bump).scalar_one()
        session.execute(insert(Mark).values(epoch=epoch, mark=mark))
        session.execute(delete(Mark).where(Mark.epoch <= epoch - MARKS_KEPT))
        return cls(session, epoch, base)

    def adapter(self, tenant: str, name: str) -> Adapter:
        """Return an adapter that is about to be changed. Raises `NotFound` if there is none."""
        row = self.find_adapter(tenant, name)
        if row is None:
            raise NotFound(f"there is no adapter {tenant}/{name}")
        row.epoch = self.epoch
        return row

    def find_adapter(self, tenant: str, name: str) -> Adapter | None:
        """Return an adapter's row, or None if there is none or it was deleted."""
        named = select(Adapter).where(Adapter.tenant == tenant, Adapter.name == name)
        return self.session.scalar(named.where(Adapter.deleted.is_(False)))

    def find_version(self, adapter: Adapter, number: int) -> Version:
        """Return a version of an adapter. Raises `NotFound` if there is none."""
        query = select(Version).where(Version.adapter_id == adapter.id, Version.number == number)
        row = self.session.scalar(query) if is_number(number) else None
        if row is None:
            raise NotFound(f"adapter {adapter.tenant}/{adapter.name} has no version {number}")
        return row

    def log(
        self,
        action: str,
        adapter: Adapter,
        selector: str = "",
        before: dict[str, Any] | None = None,
        after: dict[str, Any] | None = None,
    ) -> None:
        """Write to the audit trail that `action` was done to `tenant/name@selector`."""
        at = f"@{selector}" if selector else ""
        subject = f"{adapter.tenant}/{adapter.name}{at}"
        write_entry(self.session, action, adapter.tenant, subject, before, after)
