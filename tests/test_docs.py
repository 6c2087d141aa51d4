"""What the documents say is there is there, and the other way round."""

import re
from pathlib import Path

import pytest
from prometheus_client.metrics import MetricWrapperBase

from adapters_registry.registry import Registry
from server import metrics
from server.api.registry_metrics import RegistryMetrics
from server.residency.metrics import ResidencyMetrics
from server.settings import Settings, group_of, variable_of

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
DESIGN = (ROOT / "DESIGN.md").read_text()
SCALING = (ROOT / "docs" / "scaling.md").read_text()


def settings_table() -> str:
    rows = ["| setting | default | what it sets |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = "" if field.default in (None, "", ()) else f"`{field.default}`"
        rows.append(f"| `{variable_of(name)}` | {default} | {field.description} |")
    return "\n".join(rows)


def test_every_setting_is_documented_as_it_is() -> None:
    assert settings_table() in README, f"the table of settings should read:\n{settings_table()}"


def test_every_setting_has_a_group() -> None:
    groups = {group_of(field) for field in Settings.model_fields.values()}
    assert groups == {"Base", "Adapters", "Server", "Client"}


def test_files_named_in_the_documents_exist() -> None:
    for name in re.findall(
        r"`((?:server|adapters_registry|training|loadtest|tests|deploy|docs)/[\w/.]+)`",
        README + DESIGN + SCALING,
    ):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("text", [README, DESIGN, SCALING])
def test_nothing_is_left_to_do_in_the_documents(text: str) -> None:
    assert "TODO" not in text


def test_every_metric_is_documented_with_its_labels(registry: Registry) -> None:
    documented = {
        name.removesuffix("_total"): {label.strip() for label in labels.split(",")} - {""}
        for name, labels in re.findall(r"^\| `(loraplex_\w+)` \|([^|]*)\|", README, re.MULTILINE)
    }
    declared = {
        m._name: set(m._labelnames)
        for m in vars(metrics).values()
        if isinstance(m, MetricWrapperBase)
    }
    asked = [*RegistryMetrics(registry).collect()]
    asked += ResidencyMetrics([], max_loras=1, disk_bytes=0).collect()
    declared |= {m.name: set(m._labelnames) for m in asked if not m.name.startswith("vllm:")}
    assert documented == declared
