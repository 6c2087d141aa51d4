"""The endpoint picker's values: they select the chart's servers, and put adapters first."""

from __future__ import annotations

from pathlib import Path

import yaml

from server.api.waiting import WaitingMetrics
from tests.helm.programs import CHART, fetch

VALUES = Path(__file__).parents[2] / "deploy" / "endpoint-picker-values.yaml"


def test_the_picker_selects_the_servers_of_the_chart() -> None:
    values = yaml.safe_load(VALUES.read_text())
    profile = str(CHART / "ci" / "gpu-values.yaml")
    text = fetch(4).run("template loraplex", str(CHART), "--values", profile)
    rendered = [manifest for manifest in yaml.safe_load_all(text) if manifest]
    (pool,) = (m for m in rendered if m["kind"] == "InferencePool")
    wanted = values["inferencePool"]["modelServers"]["matchLabels"]
    assert pool["spec"]["selector"]["matchLabels"] == wanted
    (servers,) = (m for m in rendered if m["kind"] == "StatefulSet")
    assert wanted.items() <= servers["spec"]["template"]["metadata"]["labels"].items()


def test_the_picker_compares_queues_by_a_gauge_that_servers_have() -> None:
    flags = yaml.safe_load(VALUES.read_text())["inferenceExtension"]["flags"]
    families = {family.name: family for family in WaitingMetrics({}).collect()}
    (sample,) = families[flags["total-queued-requests-metric"]].samples
    assert not sample.labels, "the picker reads one series"


def test_the_adapters_home_outweighs_the_load() -> None:
    extension = yaml.safe_load(VALUES.read_text())["inferenceExtension"]
    config = yaml.safe_load(extension["pluginsCustomConfig"][extension["pluginsConfigFile"]])
    (profile,) = config["schedulingProfiles"]
    weights = {plugin["pluginRef"]: plugin["weight"] for plugin in profile["plugins"]}
    assert weights.keys() == {plugin["type"] for plugin in config["plugins"]}
    affinity = weights.pop("lora-affinity-scorer")
    assert affinity > sum(weights.values())
