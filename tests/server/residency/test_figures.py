"""In which tier a request would find each version."""

from adapters_registry.records.catalog import Catalog
from adapters_registry.registry import Registry
from server.residency.figures import count_by_tier
from server.residency.states import Tier
from tests.server.console.crowd import fill


def test_each_ready_version_is_counted_once(registry: Registry) -> None:
    fill(registry, 6)
    registry.refresh()
    catalog = registry.catalog
    first, second, third, fourth, *_ = names = list(catalog.ready_digests)
    in_memory = {first: Tier.SLOT, second: Tier.HOST, third: Tier.DISK, "default/gone@1": Tier.HOST}
    here = {catalog.ready_digests[name] for name in (second, third, fourth)}
    counts = count_by_tier(in_memory, catalog, here)
    assert counts == {Tier.SLOT: 1, Tier.HOST: 2, Tier.DISK: 2, Tier.ORIGIN: len(names) - 4}
    assert count_by_tier({}, Catalog(), here).total() == 0
