"""A change of the registry: one transaction, one step of the epoch, entries in the audit trail."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from adapters_registry.errors import NotFound
from adapters_registry.records.audit import write_entry
from adapters_registry.records.tables import Adapter, Epoch


@dataclass(frozen=True)
class Change:
    """The running transaction; what it touches carries its epoch, so that replicas find it."""

    session: Session
    epoch: int

    @classmethod
    def begin(cls, session: Session) -> Change:
        """Take the next epoch: from here to the commit, any other writer waits."""
        bump = update(Epoch).values(value=Epoch.value + 1).returning(Epoch.value)
        return cls(session, session.execute(bump).scalar_one())

    def adapter(self, tenant: str, name: str) -> Adapter:
        """An adapter that is about to be changed; `NotFound` if there is none."""
        row = self.find_adapter(tenant, name)
        if row is None or row.deleted:
            raise NotFound(f"there is no adapter {tenant}/{name}")
        row.epoch = self.epoch
        return row

    def find_adapter(self, tenant: str, name: str) -> Adapter | None:
        """An adapter's row, that of a deleted one too."""
        query = select(Adapter).where(Adapter.tenant == tenant, Adapter.name == name)
        return self.session.scalar(query)

    def log(
        self,
        action: str,
        adapter: Adapter,
        selector: str = "",
        before: dict[str, Any] | None = None,
        after: dict[str, Any] | None = None,
    ) -> None:
        """Write to the audit trail what is done to `tenant/name@selector`."""
        at = f"@{selector}" if selector else ""
        subject = f"{adapter.tenant}/{adapter.name}{at}"
        write_entry(self.session, action, adapter.tenant, subject, before, after)
