"""What a scrape says of the server, and that it stays bounded and discreet."""

import httpx
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from adapters_registry.records.catalog import VersionRecord
from server.metrics import CappedLabels
from server.residency.leases import Leases
from tests.server.answers import CHAT

TIMED = ("tenant", "adapter", "tier")
EVICTED = "loraplex_evictions_total"
LABELS = {
    "requests": ("tenant", "adapter", "endpoint", "code"),
    "time_to_first_token_seconds": TIMED,
    "inter_token_seconds": TIMED,
    "request_seconds": TIMED,
    "tokens": ("tenant", "adapter", "direction"),
    "queue_seconds": ("tenant", "reason"),
    "adapter_load_seconds": ("from_tier", "outcome"),
    "adapter_resident": ("adapter", "version", "tier"),
    "evictions": ("tier", "reason"),
    "leases": ("adapter",),
    "tier_bytes": ("tier",),
    "registry_versions": ("state",),
}
"""By name, without prefix and without `_total`."""


def test_labels_are_capped() -> None:
    label = CappedLabels(2)
    assert [label(name) for name in ("a", "b", "c", "a")] == ["a", "b", "other", "a"]


def test_labels_that_go_together_are_capped_together() -> None:
    labels = CappedLabels(1)
    assert labels.of("a", "b") == ("a", "b")
    assert labels.of("a", "c") == ("other", "other")


async def test_every_metric_of_ours_is_scraped(
    client: httpx.AsyncClient, leases: Leases, home: VersionRecord
) -> None:
    def dismissed() -> float:
        return REGISTRY.get_sample_value(EVICTED, {"tier": "host", "reason": "dismissed"}) or 0

    for model in ("home", "home", "base"):
        await client.post(CHAT, json={"model": model})
    before = dismissed()
    await leases.drain(home)
    assert dismissed() == before + 1
    await client.post(CHAT, json={"model": "home"})
    text = (await client.get("/metrics")).text
    families = {f.name: f for f in text_string_to_metric_families(text)}
    labels = {
        name: {frozenset(s.labels) - {"le"} for s in families[f"loraplex_{name}"].samples}
        for name in LABELS
    }
    assert labels == {name: {frozenset(given)} for name, given in LABELS.items()}
    first_tokens = families["loraplex_time_to_first_token_seconds"].samples
    ours = [s for s in first_tokens if s.name.endswith("_count")]
    tiers = {(s.labels["adapter"], s.labels["tier"]) for s in ours if s.value}
    assert {("default/home", "disk"), ("default/home", "slot"), ("base", "")} <= tiers
    assert "loraplex_registry_stale_seconds" in families


async def test_metrics_hold_no_key_and_no_prompt(
    client: httpx.AsyncClient, home: VersionRecord
) -> None:
    body = {"model": "home", "messages": [{"role": "user", "content": "a secret"}]}
    await client.post(CHAT, json=body)
    text = (await client.get("/metrics")).text
    assert "a secret" not in text
    assert client.headers["Authorization"].removeprefix("Bearer ") not in text
