"""Promotion: where aliases point, canary splits, and the way back.

Each function is an operation for `Registry.apply`, and so one transaction: an alias points to the
old targets or to the new ones, never to something between.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select

from adapters_registry.compatibility import reasons_on, state_on
from adapters_registry.errors import ChangedMeanwhile, Conflict, InvalidTargets, NotFound
from adapters_registry.names import LIVE, check_name
from adapters_registry.records.catalog import AliasRecord, Target, alias_record
from adapters_registry.records.change import Change, is_number
from adapters_registry.records.idempotency import (
    Idempotency,
    find_result,
    fingerprint_of,
    keep_result,
)
from adapters_registry.records.tables import Adapter, Alias, Version, VersionState
from adapters_registry.rollout.endings import end_rollouts

MAX_TARGETS = 8


def point_alias(
    change: Change,
    tenant: str,
    name: str,
    alias: str,
    targets: Sequence[Target],
    *,
    if_revision: int | None = None,
) -> AliasRecord:
    """Point an alias to versions by weight. The alias is created if it does not exist yet.

    `if_revision` is the revision that the caller has seen, 0 if there was no alias. None skips this
    comparison.

    Raises:
        NotFound: there is no such adapter.
        InvalidName: the alias may not have this name.
        InvalidTargets: the alias may not point there.
        ChangedMeanwhile: the alias has another revision.
    """
    adapter = admit(change, tenant, name, alias, targets, if_revision)
    return point(change, adapter, alias, [list(target) for target in targets])


def admit(
    change: Change,
    tenant: str,
    name: str,
    alias: str,
    targets: Sequence[Target],
    if_revision: int | None = None,
) -> Adapter:
    """Return an adapter whose alias may be pointed there. Raises what `point_alias` raises."""
    adapter = require_revision(change, tenant, name, alias, if_revision)
    check_targets(change, adapter, targets)
    return adapter


def require_revision(
    change: Change, tenant: str, name: str, alias: str, revision: int | None
) -> Adapter:
    """Return an adapter whose alias has this revision. None stands for any, 0 for no alias yet.

    Raises:
        InvalidName, NotFound: the alias's name isn't allowed, or there is no such adapter.
        ChangedMeanwhile: the alias has another revision.
    """
    adapter = change.adapter(tenant, name)
    row = find_alias(adapter, check_name(alias, "alias"))
    if revision is not None and revision != (row.revision if row else 0):
        raise ChangedMeanwhile(f"alias {alias!r} was changed meanwhile: read it again and repeat")
    return adapter


def roll_back(
    change: Change,
    tenant: str,
    name: str,
    alias: str = LIVE,
    *,
    idempotency: Idempotency | None = None,
) -> AliasRecord:
    """Point the alias back to the last version that had all of it before the present one.

    Raises:
        NotFound: there is no such adapter, or it has no such alias.
        Conflict: there is no earlier version, or it is not ready any more.
        KeyReused: the idempotency key came with another request before.
    """
    adapter = change.adapter(tenant, name)
    row = _require(adapter, alias)
    if idempotency:
        fingerprint = fingerprint_of("rollback", tenant, name, alias)
        if find_result(change, idempotency, fingerprint):
            return alias_record(row)
        keep_result(change, idempotency, fingerprint)
    if not row.previous or row.previous == row.targets:
        raise Conflict(f"{tenant}/{name}@{alias} has nothing to go back to")
    try:
        check_targets(change, adapter, [Target(*target) for target in row.previous])
    except InvalidTargets as error:
        raise Conflict(f"{tenant}/{name}@{alias} cannot go back: {error}") from error
    return point(change, adapter, alias, row.previous, action="alias.rollback")


def remove_alias(change: Change, tenant: str, name: str, alias: str) -> None:
    """Remove an alias.

    Raises:
        NotFound: there is no such adapter, or it has no such alias.
        Conflict: the alias is `live`.
    """
    if alias == LIVE:
        raise Conflict("'live' cannot be removed: point it elsewhere, or delete the adapter")
    adapter = change.adapter(tenant, name)
    remove(change, adapter, _require(adapter, alias))


def point(
    change: Change,
    adapter: Adapter,
    alias: str,
    targets: list[list[int]],
    action: str = "alias.point",
) -> AliasRecord:
    """Point an alias to targets that were checked before. It may point there already.

    A judged canary of the adapter ends, unless `action` is one of its own.
    """
    row = find_alias(adapter, alias)
    if row is not None and row.targets == targets:
        return alias_record(row)
    before = _body(row)
    if row is None:
        row = Alias(name=alias, targets=targets, revision=1)
        adapter.aliases.append(row)
    else:
        # A split is a step between two versions. A rollback goes to the version before the split.
        if len(row.targets) == 1:
            row.previous = row.targets
        row.targets, row.revision = targets, row.revision + 1
    _count_move(change, adapter, alias, action)
    change.session.flush()
    change.log(action, adapter, alias, before, _body(row))
    return alias_record(row)


def let_go(change: Change, adapter: Adapter, alias: Alias, number: int) -> None:
    """Take a version out of an alias. The last of the other targets takes its share."""
    left = [target for target in alias.targets if target[0] != number]
    if not left:
        remove(change, adapter, alias)
        return
    version, weight = left[-1]
    left[-1] = [version, weight + 100 - sum(share for _, share in left)]
    point(change, adapter, alias.name, left)


def remove(change: Change, adapter: Adapter, alias: Alias) -> None:
    """Remove an alias, `live` included."""
    change.log("alias.remove", adapter, alias.name, _body(alias))
    adapter.aliases.remove(alias)
    _count_move(change, adapter, alias.name, "alias.remove")
    change.session.flush()


def _count_move(change: Change, adapter: Adapter, alias: str, action: str) -> None:
    if alias == LIVE:
        adapter.live_revision += 1
    end_rollouts(change, adapter, alias, action)


def check_targets(change: Change, adapter: Adapter, targets: Sequence[Target]) -> None:
    """Raise `InvalidTargets` if an alias may not point there."""
    numbers = [target.version for target in targets]
    if not 1 <= len(targets) <= MAX_TARGETS or len(set(numbers)) != len(numbers):
        raise InvalidTargets(f"give 1 to {MAX_TARGETS} targets, each version once")
    if sum(t.weight for t in targets) != 100 or any(t.weight < 1 for t in targets):
        raise InvalidTargets("each weight is a whole per cent from 1, and their sum is 100")
    named = select(Version).where(
        Version.adapter_id == adapter.id, Version.number.in_([n for n in numbers if is_number(n)])
    )
    rows = {row.number: row for row in change.session.scalars(named)}
    for number in numbers:
        row = rows.get(number)
        state = state_on(row, change.base) if row else None
        if row is not None and state is VersionState.INCOMPATIBLE:
            reason = reasons_on(row, change.base)[0]["message"]
            raise InvalidTargets(f"version {number} is not offered on this server: {reason}")
        if state is not VersionState.READY:
            known = state.value if state else "unknown"
            raise InvalidTargets(
                f"version {number} is {known}: an alias can point to ready versions only"
            )


def find_alias(adapter: Adapter, name: str) -> Alias | None:
    """Return an adapter's alias, or None if it has none of this name."""
    return next((alias for alias in adapter.aliases if alias.name == name), None)


def _require(adapter: Adapter, name: str) -> Alias:
    row = find_alias(adapter, name)
    if row is None:
        raise NotFound(f"{adapter.tenant}/{adapter.name} has no alias {name!r}")
    return row


def _body(row: Alias | None) -> dict[str, Any] | None:
    return (
        row if row is None else {"targets": [{"version": n, "weight": w} for n, w in row.targets]}
    )
