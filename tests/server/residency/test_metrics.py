"""What a scrape says of where versions are, to the endpoint picker's contract."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

from prometheus_client import REGISTRY, Gauge

from server.engine.lora_info import take_out_lora_info
from server.residency.metrics import residency_metrics
from server.residency.states import State, Tier


def row(model: str, state: State, tier: Tier, size_bytes: int = 100) -> dict[str, Any]:
    told = {"model": model, "state": state.value, "tier": tier.value}
    return told | {"size_bytes": size_bytes, "pinned": False}


SNAPSHOT = [
    row("acme/bills@2", State.READY, Tier.SLOT),
    row("acme/mails@1", State.READY, Tier.HOST, 40),
    row("acme/mails@2", State.LOADING, Tier.DISK),
    row("zoo/cats@1", State.ABSENT, Tier.ORIGIN),
    row("zoo/dogs@1", State.FAILED, Tier.DISK),
    row("zoo/owls@1", State.DRAINING, Tier.HOST, 2),
]


def test_resident_versions_and_their_bytes() -> None:
    collectors = residency_metrics(SNAPSHOT, 4, disk_bytes=1000, base_name="base")

    def value(adapter: str, version: str, tier: str) -> float | None:
        labels = {"adapter": adapter, "version": version, "tier": tier}
        return collectors.get_sample_value("loraplex_adapter_resident", labels)

    assert value("acme/bills", "2", "slot") == 1
    assert value("acme/mails", "1", "host") == 1
    assert value("acme/mails", "2", "disk") is None
    tiers = {t: collectors.get_sample_value("loraplex_tier_bytes", {"tier": t}) for t in Tier}
    assert tiers == {Tier.SLOT: 100, Tier.HOST: 42, Tier.DISK: 1000, Tier.ORIGIN: None}


def test_the_endpoint_pickers_gauge() -> None:
    before = time.time()
    (family,) = (
        f
        for f in residency_metrics(SNAPSHOT, 4, disk_bytes=1000, base_name="base").collect()
        if f.name == "vllm:lora_requests_info"
    )
    (sample,) = family.samples
    assert sample.labels == {
        "max_lora": "4",
        "running_lora_adapters": "acme/bills,acme/mails,bills,mails",
        "waiting_lora_adapters": "cats,zoo/cats",
    }, "disjoint; an adapter with one version in memory is there"
    assert before <= sample.value <= time.time()


def test_the_gauge_is_there_with_nothing_in_memory() -> None:
    labels = {"max_lora": "4", "running_lora_adapters": "", "waiting_lora_adapters": ""}
    collectors = residency_metrics([], 4, disk_bytes=0, base_name="base")
    assert collectors.get_sample_value("vllm:lora_requests_info", labels) is not None
    assert collectors.get_sample_value("loraplex_tier_bytes", {"tier": "slot"}) == 0


def test_vllms_own_gauge_is_taken_out() -> None:
    gauge = Gauge("vllm:lora_requests_info", "vLLM's", ["running_lora_adapters"])
    gauge.labels("a").set(1)
    logger = SimpleNamespace(gauge_lora_info=gauge)
    take_out_lora_info([SimpleNamespace(), logger])
    assert logger.gauge_lora_info is None
    assert "vllm:lora_requests_info" not in {family.name for family in REGISTRY.collect()}
