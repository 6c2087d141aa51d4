"""Fair shares of the slots among tenants: who holds more than its share, and what it has to give.

A share is the number of slots, divided by the tenants that hold or want one, and at least one slot.
Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable


def surplus(holders: Iterable[tuple[str, int]], wanted: Counter[str], num_slots: int) -> list[int]:
    """Return the holders to close, so that tenants below their share get the slots they want.

    `holders` are tenants with what they hold, the oldest first. `wanted` is how many slots more
    each tenant wants. No more holders are returned than slots that tenants lack.
    """
    held: dict[str, list[int]] = {}
    for tenant, holder in holders:
        held.setdefault(tenant, []).append(holder)
    share = max(1, num_slots // len(wanted.keys() | held.keys()))
    num_lacking = sum(
        min(number, max(0, share - len(held.get(tenant, ())))) for tenant, number in wanted.items()
    )
    beyond = [
        holder for all_held in held.values() for holder in all_held[: max(0, len(all_held) - share)]
    ]
    return beyond[:num_lacking]
