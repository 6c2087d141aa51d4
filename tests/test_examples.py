"""The examples, as far as they can be checked without the programs that they are for."""

from __future__ import annotations

import tomllib
from pathlib import Path

import yaml

from loadtest.plan.scenario_file import load_scenario
from server.settings import Settings, variable_of
from tests.helm import generated

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_every_example_is_listed() -> None:
    listed = (EXAMPLES / "README.md").read_text()
    for file in EXAMPLES.iterdir():
        assert file.name == "README.md" or file.name in listed


def test_the_scenario_can_be_read() -> None:
    assert load_scenario(str(EXAMPLES / "my_scenario.toml")).question.endswith("?")


def test_compose_sets_what_the_server_knows() -> None:
    services = yaml.safe_load((EXAMPLES / "compose.yaml").read_text())["services"]
    given = {name for name in services["loraplex"]["environment"] if name.startswith("LORAPLEX_")}
    known = {variable_of(name) for name in Settings.model_fields}
    assert {"LORAPLEX_DATABASE_URL", "LORAPLEX_ORIGIN"} <= given <= known
    for service in services.values():
        assert set(service.get("depends_on", [])) <= services.keys()
    project = tomllib.loads((EXAMPLES.parent / "pyproject.toml").read_text())["project"]
    assert services["loraplex"]["image"] == f"loraplex:{project['version']}-cpu", "make image's"


def test_compose_has_the_charts_envoy() -> None:
    services = yaml.safe_load((EXAMPLES / "compose.yaml").read_text())["services"]
    values = yaml.safe_load((generated.CHART / "values.yaml").read_text())
    assert services["envoy"]["image"] == values["envoy"]["image"]
    text = generated.envoy()
    assert generated.ENVOY.read_text() == text, "run make chart-docs"
    assert "{{" not in text
    address = yaml.safe_load(text)["static_resources"]["clusters"][0]["load_assignment"]
    (endpoint,) = address["endpoints"][0]["lb_endpoints"]
    assert endpoint["endpoint"]["address"]["socket_address"]["address"] in services


def test_litellm_is_told_of_openais_api_at_our_address() -> None:
    models = yaml.safe_load((EXAMPLES / "litellm.yaml").read_text())["model_list"]
    for model in models:
        parameters = model["litellm_params"]
        assert parameters["model"] == f"openai/{model['model_name']}"
        assert parameters["api_base"].endswith("/v1")
