"""Verdicts: which server checks a version, and what it decides.

A version goes from `pending` to `checking` when a server claims it, and from there to `ready` or
`rejected`. The server that claimed it owns the check for `LEASE` and renews the lease while it
works. Each transition first compares the state, in the transaction of the change, so a server that
has lost its lease changes nothing. The functions are operations for `Registry.apply`.
"""

from __future__ import annotations

import logging
from dataclasses import asdict
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, and_, or_, select, update
from sqlalchemy.orm import Session, joinedload

from adapters_registry.check.static_check import AdapterFacts
from adapters_registry.compatibility import (
    ServedBase,
    allow_base_mismatch,
    is_over_rank,
    record_verdict,
    state_on,
)
from adapters_registry.composition.metadata import is_on_request
from adapters_registry.errors import CheckedElsewhere, Reason
from adapters_registry.names import LIVE
from adapters_registry.records.aliases import point
from adapters_registry.records.catalog import VersionRecord, version_record
from adapters_registry.records.change import Change
from adapters_registry.records.database import database_time
from adapters_registry.records.tables import UNDER_CHECK, Version, VersionState

log = logging.getLogger(__name__)

LEASE = timedelta(seconds=60)
"""How long a server keeps a check to itself if it does not renew the lease."""
_UNDER_CHECK = {"state": VersionState.CHECKING}
"""The state before a verdict, for the audit trail."""


def claim(change: Change, version_id: int, server_id: str) -> Version:
    """Begin to check a version. Its state is then `checking`, and this server owns the check.

    Raises:
        CheckedElsewhere: another server's lease on it runs, or a verdict exists.
    """
    row = change.session.get(Version, version_id)
    at = database_time(change.session)
    if row is None or not _is_claimable(row, server_id, at):
        raise CheckedElsewhere("another server checks this version, or has decided on it")
    row.state, row.checked_by, row.checked_until = VersionState.CHECKING, server_id, at + LEASE
    row.adapter.epoch = change.epoch
    return row


def renew(session: Session, version_id: int, server_id: str) -> bool:
    """Extend the lease on a check. Returns False if this server does not own the check.

    This is not a change of the registry: other servers read the lease when they claim a version.
    """
    renewed = session.execute(
        update(Version)
        .where(*_owned_by(version_id, server_id))
        .values(checked_until=database_time(session) + LEASE)
        .returning(Version.id)
    )
    return renewed.first() is not None


def release(change: Change, version_id: int, server_id: str) -> None:
    """Give up a check without a verdict. The version is `pending` again, for any server."""
    row = change.session.scalar(select(Version).where(*_owned_by(version_id, server_id)))
    if row is not None:
        row.state, row.checked_by, row.checked_until = VersionState.PENDING, None, None
        row.adapter.epoch = change.epoch


def inherit(change: Change, former_id: str, server_id: str) -> None:
    """Make this server the owner of the checks of another one, which it was before a restart.

    If that one lives, since this one's data folder is a copy of its, it has lost these checks.
    """
    owned = Version.checked_by == former_id, Version.state == VersionState.CHECKING
    change.session.execute(update(Version).where(*owned).values(checked_by=server_id))


def accept(change: Change, version_id: int, server_id: str, facts: AdapterFacts) -> Version:
    """Make a version ready. `live` points to it if it is the first, or if that was asked for.

    It never does to a composition that a request has named: those have no bare name.

    A promotion that was asked for at registration is cancelled by any later change of `live`. The
    promotion of a version that was registered before this one does not cancel it.

    Raises:
        CheckedElsewhere: this server does not own the check any more.
    """
    row = _decide(change, version_id, server_id, VersionState.READY)
    row.rank, row.details = facts.rank, {**row.details, "checked": facts.to_json()}
    record_verdict(row, change.base)
    change.log("version.ready", row.adapter, str(row.number), _UNDER_CHECK, {"state": row.state})
    has_live = any(alias.name == LIVE for alias in row.adapter.aliases)
    is_first = not has_live and not is_on_request(row.details)
    _promote(change, row, is_wanted=row.promote or is_first)
    return row


def keep(change: Change, version_id: int, server_id: str, facts: AdapterFacts) -> Version:
    """Keep a version whose rank is over this server's limit, for servers with a higher one.

    It has passed the static check, but was never tried. So it has no verdict on any base, and no
    server offers it before it is checked there again.

    Raises:
        CheckedElsewhere: this server does not own the check any more.
    """
    row = _decide(change, version_id, server_id, VersionState.READY)
    row.rank, row.details = facts.rank, {**row.details, "checked": facts.to_json()}
    after = {"state": VersionState.INCOMPATIBLE, "rank": facts.rank}
    change.log("version.keep", row.adapter, str(row.number), _UNDER_CHECK, after)
    return row


def reject(change: Change, version_id: int, server_id: str, reasons: list[Reason]) -> Version:
    """Reject a version for good. It is kept with the reasons.

    Raises:
        CheckedElsewhere: this server does not own the check any more.
    """
    row = _decide(change, version_id, server_id, VersionState.REJECTED)
    row.reasons = [asdict(reason) for reason in reasons]
    after = {"state": row.state, "reasons": [reason.code for reason in reasons]}
    change.log("version.reject", row.adapter, str(row.number), _UNDER_CHECK, after)
    return row


def begin_recheck(
    change: Change, tenant: str, name: str, *, allow_mismatch: bool = False
) -> list[VersionRecord]:
    """Return the versions of an adapter that are incompatible with this base, to be checked on it.

    Those that wait for their first check, on another base, are this base's from here. With
    `allow_mismatch` they may name another base.

    Raises:
        NotFound: no such adapter.
    """
    adapter = change.adapter(tenant, name)
    rows = [
        row for row in adapter.versions if state_on(row, change.base) is VersionState.INCOMPATIBLE
    ]
    for row in rows:
        if row.state in UNDER_CHECK:
            row.base = change.base.fingerprint
        if allow_mismatch:
            allow_base_mismatch(row)
    return [version_record(row, change.base) for row in rows]


def accept_again(change: Change, version_id: int, facts: AdapterFacts) -> Version:
    """Offer a ready version on this base, too. `live` moves only if that was asked for since.

    Raises:
        CheckedElsewhere: it isn't ready any more.
    """
    row = _decide_again(change, version_id)
    record_verdict(row, change.base, checked=facts.to_json())
    change.log("version.recheck", row.adapter, str(row.number), None, _on(change, "ready"))
    _promote(change, row, is_wanted=row.promote)
    return row


def reject_again(change: Change, version_id: int, reasons: list[Reason]) -> Version:
    """Refuse a ready version on this base; what other bases' servers offer stays as it is.

    A rank over this server's limit says nothing of the base, so no verdict is recorded then.

    Raises:
        CheckedElsewhere: it isn't ready any more.
    """
    row = _decide_again(change, version_id)
    if is_over_rank(row, change.base):
        return row
    record_verdict(row, change.base, reasons=[asdict(reason) for reason in reasons])
    codes = {"reasons": [reason.code for reason in reasons]}
    after = _on(change, "incompatible") | codes
    change.log("version.recheck", row.adapter, str(row.number), None, after)
    return row


def adopt_unknown(change: Change) -> None:
    """Record this base for ready versions of which no base is recorded; the log says how many.

    They were registered by an earlier release, which served them on whatever base there was.
    """
    unknown = select(Version).where(Version.base.is_(None), Version.state == VersionState.READY)
    rows = change.session.scalars(unknown.options(joinedload(Version.adapter))).all()
    for row in rows:
        record_verdict(row, change.base)
        row.adapter.epoch = change.epoch
    if rows:
        log.warning(
            "%d versions are from a release that did not record their base: from now on they "
            "belong to this one, %s",
            len(rows),
            change.base,
        )


def unfinished(session: Session, server_id: str, base: ServedBase) -> list[Version]:
    """Versions that were acknowledged and that this server may claim now, oldest first.

    Those that were registered for another base are left to its servers.
    """
    at = database_time(session)
    lapsed = or_(
        Version.checked_by.is_(None), Version.checked_by == server_id, Version.checked_until < at
    )
    claimable = or_(
        Version.state == VersionState.PENDING, and_(Version.state == VersionState.CHECKING, lapsed)
    )
    is_ours = or_(Version.base.is_(None), Version.base == base.fingerprint)
    query = select(Version).where(claimable, is_ours).order_by(Version.id)
    return list(session.scalars(query.options(joinedload(Version.adapter))))


def _decide(change: Change, version_id: int, server_id: str, state: VersionState) -> Version:
    owned = select(Version).where(*_owned_by(version_id, server_id))
    row = change.session.scalar(owned)
    if row is None:
        raise CheckedElsewhere("another server has taken over the check of this version")
    row.state, row.checked_by, row.checked_until = state, None, None
    row.adapter.epoch = change.epoch
    return row


def _decide_again(change: Change, version_id: int) -> Version:
    row = change.session.get(Version, version_id)
    if row is None or row.state != VersionState.READY:
        raise CheckedElsewhere("it was retired, or another server decides on it")
    row.adapter.epoch = change.epoch
    return row


def _on(change: Change, state: str) -> dict[str, object]:
    return {"state": state, "base": str(change.base)}


def _promote(change: Change, row: Version, *, is_wanted: bool) -> None:
    """Point `live` to the version, unless `live` was moved since that was asked for."""
    adapter, asked_at = row.adapter, row.adapter.live_revision
    if is_wanted and row.live_revision == asked_at:
        point(change, adapter, LIVE, [[row.number, 100]])
        _keep_promotions_of_later_versions(change, row, asked_at)


def _keep_promotions_of_later_versions(change: Change, promoted: Version, asked_at: int) -> None:
    """Keep the promotions of versions that were registered after this one."""
    change.session.flush()
    change.session.execute(
        update(Version)
        .where(
            Version.adapter_id == promoted.adapter_id,
            Version.number > promoted.number,
            Version.state.in_(UNDER_CHECK),
            Version.live_revision == asked_at,
        )
        .values(live_revision=promoted.adapter.live_revision)
    )


def _is_claimable(row: Version, server_id: str, at: datetime) -> bool:
    if row.state != VersionState.CHECKING:
        return row.state == VersionState.PENDING
    is_held = row.checked_until is not None and row.checked_until >= at
    return row.checked_by in (None, server_id) or not is_held


def _owned_by(version_id: int, server_id: str) -> tuple[ColumnElement[bool], ...]:
    return (
        Version.id == version_id,
        Version.state == VersionState.CHECKING,
        Version.checked_by == server_id,
    )
