"""Rules and dashboard: sound for Prometheus, of metrics that the servers have."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import prometheus_client
import pytest
import yaml

import server.metrics  # noqa: F401 # makes the server's metrics
from adapters_registry.registry import Registry
from server.api.registry_metrics import RegistryMetrics
from server.api.waiting import WaitingMetrics
from server.residency.metrics import ResidencyMetrics
from tests.helm.conftest import Manifests
from tests.helm.programs import CHART, Helm
from tests.helm.prometheus import DASHBOARD, RULES, expressions, metrics_of_vllm, names_in

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"
SUFFIXES = ("", "_total", "_bucket", "_count", "_sum")


def known_metrics(registry: Registry) -> set[str]:
    ours = {family.name for family in prometheus_client.REGISTRY.collect()}
    ours |= {family.name for family in RegistryMetrics(registry).collect()}
    ours |= {family.name for family in ResidencyMetrics([], 1, 0, "base").collect()}
    ours |= {family.name for family in WaitingMetrics({}).collect()}
    return {name + suffix for name in ours | metrics_of_vllm() for suffix in SUFFIXES}


def test_every_metric_is_one_that_the_servers_have(helm4: Helm, registry: Registry) -> None:
    used = set().union(*map(names_in, expressions(helm4)))
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


def test_every_alert_has_an_entry_in_the_runbook() -> None:
    rules = [r for group in yaml.safe_load(RULES.read_text())["groups"] for r in group["rules"]]
    alerts = {rule["alert"]: rule["annotations"]["runbook"] for rule in rules}
    _, _, text = OPERATIONS.read_text().partition("\n## Alerts\n")
    entries = re.findall(r"^### (\w+)\n\n(.+?)(?=\n### |\n## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert {name for name, _ in entries} == set(alerts)
    for name, entry in entries:
        assert alerts[name] == f"docs/operations.md#{name.lower()}"
        assert "\n* " in entry, f"{name}: what to do is missing"
