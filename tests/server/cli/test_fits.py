"""`loraplex adapters register --fit-rank`, and the plan that says which limit pays."""

import json
from pathlib import Path

import pytest

from server.auth import Keys
from tests.server.cli.commands import run
from tests.tiny import TINY_BASE as BASE
from tests.tiny import AdapterFactory

pytestmark = pytest.mark.usefixtures("served")


def test_it_says_what_is_served(
    make_adapter: AdapterFactory, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORAPLEX_API_KEY", keys.create("default", ["admin", "inference"]))
    said = run("adapters", "register", "large", str(make_adapter(rank=12)), "--fit-rank")
    assert "default/large@2 is ready" in said
    assert "default/large@1 has rank 12 and is kept for a server with a higher limit" in said
    assert "best fit of rank 8" in said
    assert "% away from it; farthest layers: " in said
    assert "moves the base's log-probabilities by up to 0.5" in said
    assert "were not compared with the original's: name the directory of the server's" in said


def test_a_key_that_may_not_ask_still_registers(make_adapter: AdapterFactory) -> None:
    said = run("adapters", "register", "large", str(make_adapter(rank=12)), "--fit-rank")
    assert "default/large@2 is ready" in said
    assert "not compared with the original's: this API key lacks the scope inference" in said


def test_what_fits_needs_no_words(make_adapter: AdapterFactory) -> None:
    said = run("adapters", "register", "small", str(make_adapter()), "--fit-rank")
    assert said.splitlines() == [line for line in said.splitlines() if "default/small@1" in line]


def test_data_needs_an_original_to_compare_with(make_adapter: AdapterFactory) -> None:
    for arguments in ((str(make_adapter()),), ("hf://org/repo", "--fit-rank")):
        said = run("adapters", "register", "x", *arguments, "--data", "held-out.jsonl", code=2)
        assert "--data compares a fit with its original" in said


def test_the_plan_counts_what_is_served(make_adapter: AdapterFactory, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(BASE | {"vocab_size": 32}))
    for name, rank in (("small", 2), ("large", 12)):
        run("adapters", "register", name, str(make_adapter(rank=rank)), "--fit-rank")
    arguments = ("plan", "--base", str(config), "--served", "--slots", "4")
    facts = json.loads(run(*arguments, "--json"))["rank_limits"]
    assert facts["num_adapters"] == 2
    assert [plan["num_fitting"] for plan in facts["limits"]] == [0, 1, 2]
    assert facts["choice"] == 16, "the original's rank counts, not its fit's"
    said = run(*arguments)
    assert "choose: --max-lora-rank 16" in said
