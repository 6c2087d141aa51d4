"""Retiring versions, deleting adapters, and pins. Operations for `Registry.apply`."""

from __future__ import annotations

from sqlalchemy import select

from adapters_registry.compatibility import state_on
from adapters_registry.errors import Conflict
from adapters_registry.records.aliases import let_go, remove
from adapters_registry.records.change import Change
from adapters_registry.records.tables import UNDER_CHECK, Adapter, Version, VersionState

IN_SERVICE = (VersionState.READY, *UNDER_CHECK)
"""Stored states that retiring ends: a version may also wait for a check on another base."""


def retire_version(
    change: Change, tenant: str, name: str, number: int, *, force: bool = False
) -> None:
    """Take a version out of service. Its number and its id are never used again.

    With `force` it is also taken out of its aliases: another target of a split takes its share, and
    an alias that points to nothing else is removed.

    Raises:
        NotFound: there is no such version.
        Conflict: an alias points to it and `force` is not given, or it is still being checked.
    """
    adapter = change.adapter(tenant, name)
    version = change.find_version(adapter, number)
    if state_on(version, change.base) in UNDER_CHECK:
        raise Conflict(f"{tenant}/{name}@{number} is being checked: try again in a moment")
    holders = [alias for alias in adapter.aliases if any(n == number for n, _ in alias.targets)]
    if holders and not force:
        names = ", ".join(sorted(alias.name for alias in holders))
        raise Conflict(
            f"{names} of {tenant}/{name} points to version {number}: point it elsewhere first, "
            "or repeat with ?force=true"
        )
    for alias in holders:
        let_go(change, adapter, alias, number)
    _retire(change, adapter, version)


def pin_version(change: Change, tenant: str, name: str, number: int, pinned: bool) -> None:
    """Pin a version, so that it keeps a slot in every engine, or unpin it.

    Raises:
        NotFound: no such version.
        Conflict: it isn't ready. A pin may be taken off on a base that the version isn't for.
    """
    adapter = change.adapter(tenant, name)
    version = change.find_version(adapter, number)
    state = state_on(version, change.base) if pinned else version.state
    if state != VersionState.READY:
        raise Conflict(f"{tenant}/{name}@{number} is {state}: only ready versions can be pinned")
    if version.pinned != pinned:
        before, after = {"pinned": version.pinned}, {"pinned": pinned}
        version.pinned = pinned
        action = "version.pin" if pinned else "version.unpin"
        change.log(action, adapter, str(number), before, after)


def delete_adapter(change: Change, tenant: str, name: str, *, force: bool = False) -> None:
    """Retire every version of an adapter and delete it. Its version numbers are not used again.

    Raises:
        NotFound: there is no such adapter.
        Conflict: an alias points to a version and `force` is not given, or a version is still
            being checked.
    """
    adapter = change.adapter(tenant, name)
    versions = select(Version).where(Version.adapter_id == adapter.id)
    under_check = change.session.scalars(versions.where(Version.state.in_(UNDER_CHECK)))
    if any(state_on(version, change.base) in UNDER_CHECK for version in under_check):
        raise Conflict(f"a version of {tenant}/{name} is being checked: try again in a moment")
    if adapter.aliases and not force:
        raise Conflict(f"{tenant}/{name} is in service: repeat with ?force=true to delete it")
    for alias in list(adapter.aliases):
        remove(change, adapter, alias)
    in_service = versions.where(Version.state.in_(IN_SERVICE)).order_by(Version.number)
    for version in change.session.scalars(in_service).all():
        _retire(change, adapter, version)
    adapter.deleted = True
    change.log("adapter.delete", adapter, "", {"deleted": False}, {"deleted": True})


def _retire(change: Change, adapter: Adapter, version: Version) -> None:
    if version.state in IN_SERVICE:
        before, after = {"state": version.state}, {"state": VersionState.RETIRED}
        version.state, version.pinned = VersionState.RETIRED, False
        change.log("version.retire", adapter, str(version.number), before, after)
