"""Usage in money: each tenant's part of the machines' cost, and what dedicated ones would cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from adapters_registry.records.usage.consumption import Consumption
from adapters_registry.records.usage.reading import UsedByTenant

MAX_ROWS = 50


@dataclass(frozen=True)
class Cost:
    """What the machines cost in a span of time."""

    price: float
    """Of an hour of one machine."""
    num_machines: int
    hours: float

    @property
    def amount(self) -> float:
        """What all of them cost."""
        return self.num_machines * self.of_one_machine

    @property
    def of_one_machine(self) -> float:
        """What each of them costs."""
        return self.price * self.hours


@dataclass(frozen=True)
class Bill:
    """The part of one tenant, or of several together."""

    tenant: str
    """Empty for several together."""
    num_tenants: int
    num_adapters: int
    """How many it has used. One that several tenants have used counts for each of them."""
    token_share: float
    """The share of all tenants' tokens, between 0 and 1."""
    slot_share: float
    """The share of all tenants' slot time, between 0 and 1."""
    by_tokens: float
    by_slot_time: float
    dedicated: float
    """What a machine of its own for each adapter would cost."""


def hours_between(since: datetime, until: datetime, first_use: datetime | None) -> float:
    """Return the hours of a span since the first use of all: before it nothing may have run."""
    start = max(since, first_use) if first_use else until
    return max((until - start) / timedelta(hours=1), 0.0)


def bills(used: Sequence[UsedByTenant], everyone: Consumption, cost: Cost) -> list[Bill]:
    """Return the bills of the tenants in the order given, and of all that do not fit as the last.

    `everyone` is what all tenants have used, also those that are not in `used`.
    """
    rows = [_bill(each.tenant, [each], everyone, cost) for each in used[:MAX_ROWS]]
    others = used[MAX_ROWS:]
    return [*rows, _bill("", others, everyone, cost)] if others else rows


def _bill(tenant: str, used: Sequence[UsedByTenant], everyone: Consumption, cost: Cost) -> Bill:
    own = sum((each.consumption for each in used), Consumption())
    num_adapters = sum(each.num_adapters for each in used)
    token_share = own.tokens / everyone.tokens if everyone.tokens else 0.0
    slot_share = own.slot_seconds / everyone.slot_seconds if everyone.slot_seconds > 0 else 0.0
    return Bill(
        tenant,
        len(used),
        num_adapters,
        token_share,
        slot_share,
        token_share * cost.amount,
        slot_share * cost.amount,
        num_adapters * cost.of_one_machine,
    )
