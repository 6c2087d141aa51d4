"""`loraplex adapters compose`, as a person would call it, on the app."""

import json

import pytest

from adapters_registry.registry import Registry
from tests.adapters_registry.adapters import register
from tests.server.cli.commands import run
from tests.tiny import AdapterFactory

pytestmark = pytest.mark.usefixtures("served")


@pytest.fixture(autouse=True)
def parts(registry: Registry, make_adapter: AdapterFactory) -> None:
    for seed, name in enumerate(("style", "domain"), 1):
        register(registry, make_adapter(seed=seed, rank=5), name=name)


def test_it_says_what_was_added() -> None:
    said = run("adapters", "compose", "both", "style=0.7", "domain@1=-0.3", "--rank", "8")
    assert "default/both@1 is ready" in said
    assert "0.7 x default/style@1" in said
    assert "-0.3 x default/domain@1" in said
    assert "rank 8" in said
    assert "away from the exact sum" in said
    assert "farthest layers: " in said


def test_json_is_the_version() -> None:
    version = json.loads(run("adapters", "compose", "half", "style=0.5", "--json"))
    assert version["metadata"]["composed"]["parts"][0]["weight"] == 0.5
    assert version["metadata"]["composed"]["error"] == 0
    promoted = json.loads(run("adapters", "compose", "half", "style", "--promote", "--json"))
    assert promoted["version"] == 2
    assert json.loads(run("adapters", "show", "half", "--json"))["live"] == 2


def test_a_sum_of_too_large_a_rank_names_the_flag() -> None:
    said = run("adapters", "compose", "both", "style", "domain", code=1)
    assert "add up to 10" in said
    assert "--rank 8" in said


@pytest.mark.parametrize("part", ["style=much", "=1", "style=nan", "style=inf"])
def test_parts_that_cannot_be_read(part: str) -> None:
    assert "write MODEL=WEIGHT" in run("adapters", "compose", "both", part, code=2)


def test_names_that_are_not_allowed() -> None:
    assert "is not allowed" in run("adapters", "compose", "Both", "style", code=1)
