"""Warm promotions: an alias moves when every server that serves the adapter has the version.

`begin` keeps the promotion with the adapter. Each server sees it in its catalog, loads the version
into host memory if it serves the adapter, and reports that. The server that was asked then moves
the alias with `finish`. It does so at the latest when the promotion's time is over, so a server
that cannot load the version holds up nobody for ever. The functions are operations for
`Registry.apply`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from adapters_registry.errors import InvalidTargets
from adapters_registry.records.aliases import admit, check_targets, point
from adapters_registry.records.catalog import AliasRecord, Target
from adapters_registry.records.change import Change
from adapters_registry.records.database import database_time
from adapters_registry.rollout.endings import cancel_warming
from adapters_registry.rollout.promotion import WarmPromotion, Warmth
from adapters_registry.rollout.reports import read_warmth

POINT = "alias.point"


@dataclass(frozen=True)
class Finished:
    """The end of a warm promotion."""

    alias: AliasRecord | None
    """Where the alias points now. None if the promotion was cancelled."""
    servers: dict[str, Warmth] = field(default_factory=dict)
    """What each server has said of the version."""

    @property
    def late(self) -> dict[str, Warmth]:
        """Return the servers for which the alias did not wait any longer."""
        return {server: said for server, said in self.servers.items() if not said.is_settled}


def begin(
    change: Change,
    tenant: str,
    name: str,
    alias: str,
    targets: Sequence[Target],
    *,
    server: str,
    wait: timedelta,
    if_revision: int | None = None,
    action: str = POINT,
) -> WarmPromotion:
    """Keep a promotion until servers have loaded its versions. It replaces one that waits.

    `server` is the server that was asked, and `wait` the longest time until the alias moves.
    Raises what `point_alias` raises.
    """
    adapter = admit(change, tenant, name, alias, targets, if_revision)
    cancel_warming(change, adapter, "another promotion was asked for")
    pairs = tuple((target.version, target.weight) for target in targets)
    until = database_time(change.session) + wait
    promotion = WarmPromotion(alias, pairs, change.epoch, server, until, action)
    adapter.warming = promotion.to_json()
    shown = [{"version": version, "weight": weight} for version, weight in pairs]
    change.log("alias.warm", adapter, alias, None, {"targets": shown})
    return promotion


def finish(change: Change, tenant: str, name: str, promotion: WarmPromotion) -> Finished:
    """Move the alias, and say on which servers the version is not in memory yet."""
    adapter = change.find_adapter(tenant, name)
    if adapter is None or adapter.warming != promotion.to_json():
        return Finished(None)
    adapter.epoch = change.epoch
    try:
        check_targets(change, adapter, [Target(*target) for target in promotion.targets])
    except InvalidTargets as error:
        cancel_warming(change, adapter, str(error))
        return Finished(None)
    adapter.warming = None
    servers = read_warmth(change.session, promotion.epoch)
    targets = [list(target) for target in promotion.targets]
    record = point(change, adapter, promotion.alias, targets, promotion.action)
    finished = Finished(record, servers)
    said = {"servers": len(servers), "late": {s: w.value for s, w in finished.late.items()}}
    change.log("alias.warm.end", adapter, promotion.alias, None, said)
    return finished
