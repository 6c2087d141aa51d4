"""What a change of an alias ends: a promotion that waits for servers, and a judged canary."""

from __future__ import annotations

from sqlalchemy import select

from adapters_registry.names import LIVE
from adapters_registry.records.change import Change
from adapters_registry.records.tables import Adapter, now
from adapters_registry.rollout.tables import CanaryState, JudgedCanary

OF_THE_JUDGE = "canary."
"""How the actions of judged canaries begin, in the audit trail."""


def end_rollouts(change: Change, adapter: Adapter, alias: str, action: str) -> None:
    """End what waits for or judges an alias that `action` has just moved.

    A promotion that moves its alias is no longer kept then, and a canary's own steps leave it be.
    """
    if adapter.warming and adapter.warming["alias"] == alias:
        cancel_warming(change, adapter, f"{alias} was moved by another change ({action})")
    if alias == LIVE and not action.startswith(OF_THE_JUDGE):
        end_judged(change, adapter, f"live was moved by another change ({action})")


def cancel_warming(change: Change, adapter: Adapter, reason: str) -> None:
    """End a promotion that waits for servers. The alias stays where it is."""
    if adapter.warming is None:
        return
    alias = str(adapter.warming["alias"])
    adapter.warming = None
    change.log("alias.warm.cancel", adapter, alias, None, {"reason": reason})


def end_judged(change: Change, adapter: Adapter, reason: str) -> None:
    """End an adapter's judged canary, if it has one that runs. The split stays as it is."""
    running = select(JudgedCanary).where(
        JudgedCanary.adapter_id == adapter.id, JudgedCanary.state == CanaryState.RUNNING
    )
    for canary in change.session.scalars(running):
        canary.state, canary.finding = CanaryState.ENDED, "moved"
        canary.reason, canary.ended_at, canary.examples = reason, now(), []
        before, after = {"state": CanaryState.RUNNING}, {"state": canary.state, "reason": reason}
        change.log("canary.end", adapter, str(canary.number), before, after)
