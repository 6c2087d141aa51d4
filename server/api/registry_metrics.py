"""Gauges that are read from the adapter registry when metrics are scraped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from adapters_registry.records.tables import VersionState
from adapters_registry.registry import Registry


class RegistryMetrics(Collector):
    """Gauges of the adapter registry, read from its catalog: a scrape asks no database."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def collect(self) -> Iterable[Metric]:
        """Yield the gauges."""
        yield GaugeMetricFamily(
            "loraplex_registry_stale_seconds",
            "Time since the registry's database last answered.",
            value=self._registry.stale_seconds,
        )
        versions = GaugeMetricFamily(
            "loraplex_registry_versions", "Registered versions.", labels=["state"]
        )
        adapters = self._registry.catalog.adapters.values()
        counts = Counter(v.state for adapter in adapters for v in adapter.versions.values())
        for state in VersionState:
            versions.add_metric([state.value], counts[state])
        yield versions


def registry_metrics(registry: Registry) -> CollectorRegistry:
    """Return a Prometheus `CollectorRegistry` with the gauges of the adapter registry."""
    collectors = CollectorRegistry(auto_describe=False)
    collectors.register(RegistryMetrics(registry))
    return collectors
