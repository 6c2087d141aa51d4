"""Rules and dashboard: sound for promtool, of metrics that the servers have."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import prometheus_client
import pytest
import yaml

import server.metrics  # noqa: F401 # makes the server's metrics
from adapters_registry.registry import Registry
from server.api.registry_metrics import RegistryMetrics
from server.residency.metrics import ResidencyMetrics
from tests.helm.conftest import Manifests
from tests.helm.programs import CHART, Helm

RULES = CHART / "files" / "rules.yaml"
DASHBOARD = json.loads((CHART / "files" / "dashboard.json").read_text())
SUFFIXES = ("", "_total", "_bucket", "_count", "_sum")


def expressions(helm: Helm) -> Iterator[str]:
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        yield from (rule["expr"] for rule in group["rules"])
    for panel in DASHBOARD["panels"]:
        yield from (target["expr"].replace("$service", ".*") for target in panel["targets"])
    for manifest in helm.render("--values", str(CHART / "ci" / "gpu-values.yaml")):
        if manifest["kind"] == "ScaledObject":
            yield from (trigger["metadata"]["query"] for trigger in manifest["spec"]["triggers"])


def known_metrics(registry: Registry) -> set[str]:
    vllm = importlib.util.find_spec("vllm")  # which importing would take seconds
    assert vllm is not None
    assert vllm.origin is not None
    declarations = Path(vllm.origin).parent / "v1" / "metrics" / "loggers.py"
    ours = {family.name for family in prometheus_client.REGISTRY.collect()}
    ours |= {family.name for family in RegistryMetrics(registry).collect()}
    ours |= {family.name for family in ResidencyMetrics([], max_loras=1, disk_bytes=0).collect()}
    theirs = set(re.findall(r'name="(vllm:\w+)"', declarations.read_text()))
    return {name + suffix for name in ours | theirs for suffix in SUFFIXES}


def test_every_metric_is_one_that_the_servers_have(helm4: Helm, registry: Registry) -> None:
    used = {
        name
        for expression in expressions(helm4)
        for name in re.findall(r"\b((?:loraplex_|vllm:)\w+)", expression)
    }
    assert len(used) > 10
    assert used <= known_metrics(registry)


def test_promtool_takes_every_expression(helm4: Helm, tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool isn't installed (Debian's package prometheus)")
    recorded = [{"record": f"r:{i}", "expr": e} for i, e in enumerate(expressions(helm4))]
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": recorded}]}))
    for rules in (RULES, file):
        done = subprocess.run([promtool, "check", "rules", rules], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_rules_and_dashboard_arrive_as_they_are(helm4: Helm) -> None:
    rendered: Manifests = helm4.render("--values", str(CHART / "ci" / "cpu-values.yaml"))
    by_name = {(m["kind"], m["metadata"]["name"]): m for m in rendered}
    assert by_name["PrometheusRule", "demo-loraplex"]["spec"] == yaml.safe_load(RULES.read_text())
    dashboard = by_name["ConfigMap", "demo-loraplex-dashboard"]["data"]["loraplex.json"]
    assert json.loads(dashboard) == DASHBOARD
