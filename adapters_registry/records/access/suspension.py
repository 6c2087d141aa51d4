"""Suspending an adapter or a tenant, and resuming it. Operations for `Registry.apply`.

Nothing is unloaded or lost: the server only refuses new requests until it is resumed.
`suspend_tenant` and `resume_tenant` stand in `adapters_registry/records/tenants.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from adapters_registry.errors import Conflict
from adapters_registry.records.audit import write_entry
from adapters_registry.records.change import Change
from adapters_registry.records.tables import Adapter, Tenant, now


@dataclass(frozen=True)
class Suspension:
    """Since when something is suspended, and why."""

    at: datetime
    reason: str = ""
    by_admin: bool = False
    """Whether an admin did it. Then only an admin can resume it."""

    @classmethod
    def of(cls, row: Adapter | Tenant) -> Suspension | None:
        """Return the suspension of a row, or None if it isn't suspended."""
        if (stored := row.suspension) is None:
            return None
        at = datetime.fromisoformat(stored["at"])
        return cls(at, stored["reason"], stored["by_admin"])


def suspend_adapter(
    change: Change, tenant: str, name: str, reason: str = "", *, by_admin: bool
) -> None:
    """Have the requests for every version of an adapter refused. It may be suspended already.

    Raises:
        NotFound: there is no such adapter.
        Conflict: an admin has suspended it, and the caller is none.
    """
    begin(change, change.adapter(tenant, name), reason, by_admin=by_admin)


def resume_adapter(change: Change, tenant: str, name: str, *, by_admin: bool) -> None:
    """End the suspension of an adapter, if there is one.

    Raises:
        NotFound: there is no such adapter.
        Conflict: an admin has suspended it, and the caller is none.
    """
    end(change, change.adapter(tenant, name), by_admin=by_admin)


def begin(change: Change, row: Adapter | Tenant, reason: str, *, by_admin: bool) -> None:
    """Suspend a row, or change the reason. Raises `Conflict` as above."""
    known = Suspension.of(row)
    _require_admin_for(known, row, by_admin)
    if known is None or (known.reason, known.by_admin) != (reason, by_admin):
        at = known.at if known else now()
        row.suspension = {"at": at.isoformat(), "reason": reason, "by_admin": by_admin}
        _log(change, "suspend", row, known)


def end(change: Change, row: Adapter | Tenant, *, by_admin: bool) -> None:
    """Resume a row. Raises `Conflict` as above."""
    known = Suspension.of(row)
    _require_admin_for(known, row, by_admin)
    if known is not None:
        row.suspension = None
        _log(change, "resume", row, known)


def _require_admin_for(known: Suspension | None, row: Adapter | Tenant, by_admin: bool) -> None:
    if known is not None and known.by_admin and not by_admin:
        raise Conflict(f"an administrator has suspended {_name_of(row)}: ask them to change that")


def _log(change: Change, verb: str, row: Adapter | Tenant, known: Suspension | None) -> None:
    row.epoch = change.epoch
    kind, tenant = ("tenant", row.name) if isinstance(row, Tenant) else ("adapter", row.tenant)
    before, after = _body(known), _body(Suspension.of(row))
    write_entry(change.session, f"{kind}.{verb}", tenant, _name_of(row), before, after)


def _name_of(row: Adapter | Tenant) -> str:
    return row.name if isinstance(row, Tenant) else f"{row.tenant}/{row.name}"


def _body(suspension: Suspension | None) -> dict[str, Any]:
    if suspension is None:
        return {"suspended": False}
    return {"suspended": True, "reason": suspension.reason}
