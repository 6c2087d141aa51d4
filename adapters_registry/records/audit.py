"""The audit trail: who made which change. An entry is written in the transaction of its change."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from adapters_registry.records.tables import AuditEntry, Tenant


@dataclass(frozen=True)
class Actor:
    """Who acts: the public part of an API key, or the server itself; and the network address."""

    name: str = "server"
    origin: str = ""


SERVER = Actor()
KEY_ACTOR = "key "
"""What stands before a key's id in an actor's name."""
current_actor: ContextVar[Actor] = ContextVar("actor", default=SERVER)
"""Set for each request; threads that work for the request inherit it."""


def write_entry(
    session: Session,
    action: str,
    tenant: str,
    subject: str,
    before: dict[str, Any] | None = None,
    after: dict[str, Any] | None = None,
) -> None:
    """Add an entry to the running transaction, in the name of `current_actor`."""
    actor = current_actor.get()
    tenant_id = session.scalar(select(Tenant.id).where(Tenant.name == tenant)) or ""
    session.add(
        AuditEntry(
            actor=actor.name[:128],
            origin=actor.origin[:64],
            tenant=tenant,
            tenant_id=tenant_id,
            action=action,
            subject=subject,
            before=before,
            after=after,
        )
    )


def read_entries(
    session: Session,
    *,
    tenant: str | None = None,
    tenant_id: str | None = None,
    subject: str | None = None,
    action: str | None = None,
    adapter: str | None = None,
    before_id: int | None = None,
    limit: int = 100,
) -> list[AuditEntry]:
    """Return at most `limit` entries, the newest first, that match every filter which is given.

    `before_id` continues a listing below the id of the last entry of the page before. `tenant` is
    a name, which several tenants may have had one after the other. `tenant_id` is one tenant's.
    `adapter` is `tenant/name`: what was done to it, its versions and its aliases.
    """
    query = select(AuditEntry).order_by(AuditEntry.id.desc()).limit(limit)
    if tenant is not None:
        query = query.where(AuditEntry.tenant == tenant)
    if tenant_id is not None:
        query = query.where(AuditEntry.tenant_id == tenant_id)
    if subject is not None:
        query = query.where(AuditEntry.subject == subject)
    if action is not None:
        query = query.where(AuditEntry.action == action)
    if adapter is not None:
        part_of_it = AuditEntry.subject.startswith(f"{adapter}@", autoescape=True)
        query = query.where(or_(AuditEntry.subject == adapter, part_of_it))
    if before_id is not None:
        query = query.where(AuditEntry.id < before_id)
    return list(session.scalars(query))
