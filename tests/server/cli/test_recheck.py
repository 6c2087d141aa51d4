"""`loraplex adapters recheck` and what the lists say of versions of another base, on the app."""

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from adapters_registry.registry import Registry
from server.cli import main
from tests.adapters_registry.adapters import register
from tests.tiny import AdapterFactory

pytestmark = pytest.mark.usefixtures("served")


@pytest.fixture(autouse=True)
def foreign(registry: Registry, database_url: str, make_adapter: AdapterFactory) -> None:
    """Two adapters of another base; the second one names it."""
    base = replace(registry.base, name="former", fingerprint="f" * 64)
    other = Registry(database_url, registry.content, base)
    register(other, make_adapter())
    register(other, make_adapter(config={"base_model_name_or_path": "former"}), name="named")
    other.close()
    registry.refresh()


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(main.app, arguments)
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def test_lists_say_what_is_not_offered_and_why() -> None:
    listed = run("adapters", "list")
    assert "1 (incompatible)" in listed
    assert "it was checked on the base former" in listed
    shown = json.loads(run("adapters", "show", "home", "--json"))
    assert shown["versions"][0]["state"] == "incompatible"


def test_one_adapter() -> None:
    assert "default/home@1 is ready" in run("adapters", "recheck", "home")
    assert "no version is incompatible" in run("adapters", "recheck", "home")


def test_all_adapters() -> None:
    checked = run("adapters", "recheck", "--all", code=1)
    assert "default/home@1 is ready" in checked
    assert "default/named@1 is incompatible base_mismatch: it was trained on 'former'" in checked
    allowed = run("adapters", "recheck", "--all", "--allow-base-mismatch")
    assert "default/named@1 is ready" in allowed
    assert "incompatible" not in run("adapters", "list")


def test_either_a_name_or_all() -> None:
    assert "give an adapter's name, or --all" in run("adapters", "recheck", code=2)
    assert "give an adapter's name, or --all" in run("adapters", "recheck", "x", "--all", code=2)
