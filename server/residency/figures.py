"""How much a server holds and does now, as its replicas and the console say it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Mapping

from adapters_registry.records.catalog import Catalog
from adapters_registry.records.servers import ServerFigures
from adapters_registry.registry import Registry
from server.engine.interface import Engine
from server.residency.leases import Leases
from server.residency.states import Tier


def figures_now(
    registry: Registry, leases: Leases, engine: Engine, slots: int, waiting: int
) -> Callable[[], ServerFigures]:
    """Look at what changes with each request; return what adds it up, in any thread.

    `waiting`: how many requests wait.

    The second half takes milliseconds with many adapters, which streams should not wait for.
    """
    snapshot, state = leases.snapshot(), engine.state.value
    in_memory = {row["model"]: row["tier"] for row in snapshot}
    running = sum(row["leases"] for row in snapshot)

    def add_up() -> ServerFigures:
        counts = count_by_tier(in_memory, registry.catalog, registry.content.sizes())
        return ServerFigures(
            engine=state,
            slots=slots,
            in_slots=counts[Tier.SLOT],
            in_host_memory=counts[Tier.HOST],
            on_disk=counts[Tier.DISK],
            elsewhere=counts[Tier.ORIGIN],
            disk_bytes=registry.content.num_bytes(),
            running=running,
            waiting=waiting,
        )

    return add_up


def count_by_tier(
    in_memory: Mapping[str, str], catalog: Catalog, on_disk: Container[str]
) -> Counter[str]:
    """Return how many versions a request would find in each tier.

    `in_memory` has the tier of those that the engine knows, by public name; all others that are
    ready are on disk, or not here. `on_disk` has the digests of the files that are here.
    """
    counts = Counter(tier for tier in in_memory.values() if tier in (Tier.SLOT, Tier.HOST))
    ready, is_here = catalog.ready_digests, on_disk.__contains__
    nearer = [
        ready[name]
        for name, tier in in_memory.items()
        if tier in (Tier.SLOT, Tier.HOST) and name in ready
    ]
    counts[Tier.DISK] = sum(map(is_here, ready.values())) - sum(map(is_here, nearer))
    counts[Tier.ORIGIN] = len(ready) - len(nearer) - counts[Tier.DISK]
    return counts
