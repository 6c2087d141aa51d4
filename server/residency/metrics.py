"""Metrics of where versions are, read once when Prometheus asks.

The endpoint picker of the Gateway API Inference Extension routes by `vllm:lora_requests_info`
(https://github.com/kubernetes-sigs/gateway-api-inference-extension, docs/proposals/
003-model-server-protocol). vLLM's own metric names only adapters that have requests now, so the
picker would forget where an idle adapter is. This one names adapters whose weights are in memory.

Newer pickers (https://github.com/llm-d/llm-d-router) read `vllm:lora_adapter_loaded` and two gauges
beside it, which no release of vLLM has yet (vllm-project/vllm, pull requests 51433 and 54830).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from server.residency.states import State, Tier

_IN_MEMORY = (Tier.SLOT.value, Tier.HOST.value)
_WANTED = (State.ABSENT.value, State.FETCHING.value, State.LOADING.value)


class ResidencyMetrics(Collector):
    """The gauges of one snapshot, as `Leases.snapshot` gives it."""

    def __init__(
        self, snapshot: list[dict[str, Any]], max_loras: int, disk_bytes: int, base_name: str
    ) -> None:
        self._snapshot, self._max_loras, self._disk_bytes = snapshot, max_loras, disk_bytes
        self._base_name = base_name

    def collect(self) -> Iterable[Metric]:
        """Yield the gauges, with one series for each version in memory."""
        resident = GaugeMetricFamily(
            "loraplex_adapter_resident",
            "1 for each version whose weights are in a slot or in host memory.",
            labels=["adapter", "version", "tier"],
        )
        num_bytes = Counter(dict.fromkeys(_IN_MEMORY, 0) | {Tier.DISK.value: self._disk_bytes})
        for row in self._snapshot:
            if row["tier"] in _IN_MEMORY:
                adapter, _, version = row["model"].rpartition("@")
                resident.add_metric([adapter, version, row["tier"]], 1)
                num_bytes[row["tier"]] += row["size_bytes"]
        yield resident
        tiers = GaugeMetricFamily(
            "loraplex_tier_bytes",
            "Adapters in slots, in host memory without a slot, and all files on disk.",
            labels=["tier"],
        )
        for tier, count in num_bytes.items():
            tiers.add_metric([tier], count)
        yield tiers
        yield self._requests_info()
        yield from self._loaded()

    def _requests_info(self) -> Metric:
        ready = {row["model"] for row in self._snapshot if row["state"] == State.READY}
        wanted = {row["model"] for row in self._snapshot if row["state"] in _WANTED}
        running, waiting = _asked_as(ready), _asked_as(wanted)
        info = GaugeMetricFamily(
            "vllm:lora_requests_info",
            "Adapters in memory (running) and on their way (waiting); the value is the time.",
            labels=["max_lora", "running_lora_adapters", "waiting_lora_adapters"],
        )
        names = (",".join(sorted(running)), ",".join(sorted(waiting - running)))
        info.add_metric([str(self._max_loras), *names], time.time())
        return info

    def _loaded(self) -> Iterable[Metric]:
        """Yield the newer contract's gauges. Its word for a slot is `gpu`, on any device."""
        levels: dict[str, str] = {}
        pinned: set[str] = set()
        slots: set[str] = set()
        for row in self._snapshot:
            if row["state"] != State.READY:
                continue
            in_slot = row["tier"] == Tier.SLOT
            slots |= {row["model"]} if in_slot else set()
            for name in _asked_as({row["model"]}):
                # Of two versions, the nearer one: a router wants to know where to send requests.
                levels[name] = "gpu" if in_slot else levels.get(name, "cpu")
                pinned |= {name} if row["pinned"] else set()
        loaded = GaugeMetricFamily(
            "vllm:lora_adapter_loaded",
            "1 for each adapter in a slot (gpu) or in host memory (cpu), by the names it has.",
            labels=["adapter_name", "level", "pinned"],
        )
        for name, level in sorted(levels.items()):
            loaded.add_metric([name, level, str(name in pinned).lower()], 1)
        yield loaded
        for name, text, value in (
            ("vllm:num_gpu_loaded_lora_adapters", "Adapters in slots.", len(slots)),
            ("vllm:max_gpu_lora_adapters", "Slots for adapters.", self._max_loras),
        ):
            gauge = GaugeMetricFamily(name, text, labels=["model_name"])
            gauge.add_metric([self._base_name], value)
            yield gauge


def _asked_as(models: set[str]) -> set[str]:
    """Return the names that most requests use: `tenant/name`, and the tenant's own `name`."""
    adapters = {model.rpartition("@")[0] for model in models}
    return adapters | {adapter.partition("/")[2] for adapter in adapters}


def residency_metrics(
    snapshot: list[dict[str, Any]], max_loras: int, disk_bytes: int, base_name: str
) -> CollectorRegistry:
    """Return a Prometheus `CollectorRegistry` with these gauges for one scrape."""
    collectors = CollectorRegistry(auto_describe=False)
    collectors.register(ResidencyMetrics(snapshot, max_loras, disk_bytes, base_name))
    return collectors
