"""How many requests wait now, and what for.

Autoscalers steer by it, and endpoint pickers, which send a request to the server where the fewest
wait. vLLM's own count isn't enough for them: most requests wait here, before vLLM gets them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from server.residency.leases import Leases
from server.residency.states import Wait
from server.tenancy.prompt_queue import PromptQueue

IN_ENGINE = "vllm:num_requests_waiting"


@dataclass(frozen=True)
class Waiting:
    """Counts the requests that wait in all parts of the server."""

    leases: Leases
    prompt_queue: PromptQueue

    def now(self) -> dict[Wait, int]:
        """Return how many requests wait, for each thing that a request may wait for."""
        waiting = dict.fromkeys(Wait, 0) | self.leases.num_waiting()
        for_engine, for_own = self.prompt_queue.num_waiting()
        waiting[Wait.PROMPT] = for_engine
        waiting[Wait.SHARE] += for_own
        waiting[Wait.ENGINE] = _in_engine()
        return waiting

    def total(self) -> int:
        """Return how many requests wait for anything."""
        return sum(self.now().values())


def _in_engine() -> int:
    """Return vLLM's own count, which it keeps in a metric; 0 before the engine has started."""
    found = REGISTRY.restricted_registry([IN_ENGINE]).collect()
    return int(sum(sample.value for metric in found for sample in metric.samples))


class WaitingMetrics(Collector):
    """The gauges of what waits at one moment."""

    def __init__(self, waiting: Mapping[Wait, int]) -> None:
        self._waiting = waiting

    def collect(self) -> Iterable[Metric]:
        """Yield the gauges; all series are there from the start."""
        gauge = GaugeMetricFamily(
            "loraplex_waiting",
            "Requests that wait now: for a slot (slot), for their adapter's weights (load), for a "
            "place in the prompt queue (prompt), for other requests of their own tenant (share), "
            "or in the engine for memory or a step (engine).",
            labels=["reason"],
        )
        for reason in Wait:
            gauge.add_metric([reason.value], self._waiting.get(reason, 0))
        yield gauge
        yield GaugeMetricFamily(
            "loraplex_queued_requests",
            "The sum of loraplex_waiting, for endpoint pickers that read one series.",
            value=sum(self._waiting.values()),
        )


def waiting_metrics(waiting: Mapping[Wait, int]) -> CollectorRegistry:
    """Return a Prometheus `CollectorRegistry` with these gauges for one scrape."""
    collectors = CollectorRegistry(auto_describe=False)
    collectors.register(WaitingMetrics(waiting))
    return collectors
