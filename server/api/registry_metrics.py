"""Gauges that are read from the adapter registry when metrics are scraped."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError

from adapters_registry.registry import Registry


class RegistryMetrics(Collector):
    """What is asked of the adapters' registry when scraped."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def collect(self) -> Iterable[Metric]:
        """Yield the gauges; of versions none while the database doesn't answer."""
        yield GaugeMetricFamily(
            "loraplex_registry_stale_seconds",
            "Time since the registry's database last answered.",
            value=self._registry.stale_seconds,
        )
        versions = GaugeMetricFamily(
            "loraplex_registry_versions", "Registered versions.", labels=["state"]
        )
        with contextlib.suppress(SQLAlchemyError):
            for state, count in self._registry.count_versions().items():
                versions.add_metric([state], count)
            yield versions


def registry_metrics(registry: Registry) -> CollectorRegistry:
    """A registry of metrics of this app's own, for what its adapters' registry says."""
    collectors = CollectorRegistry(auto_describe=False)
    collectors.register(RegistryMetrics(registry))
    return collectors
