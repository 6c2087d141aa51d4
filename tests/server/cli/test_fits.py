"""`loraplex adapters register --fit-rank`, and the plan that says which limit pays."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from adapters_registry.registry import Registry
from server.auth import Keys
from server.cli import main
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
    assert "not compared with its original: name the directory of the server's" in said


def test_a_key_that_may_not_ask_still_registers(make_adapter: AdapterFactory) -> None:
    said = run("adapters", "register", "large", str(make_adapter(rank=12)), "--fit-rank")
    assert "default/large@2 is ready" in said
    assert "not compared with its original: this API key lacks the scope inference" in said


def test_what_fits_needs_no_words(make_adapter: AdapterFactory) -> None:
    said = run("adapters", "register", "small", str(make_adapter()), "--fit-rank")
    assert said.splitlines() == [line for line in said.splitlines() if "default/small@1" in line]


def test_data_needs_an_original_to_compare_with(make_adapter: AdapterFactory) -> None:
    for arguments in ((str(make_adapter()),), ("hf://org/repo", "--fit-rank")):
        said = run("adapters", "register", "x", *arguments, "--data", "held-out.jsonl", code=2)
        assert "--data compares a fit with its original" in said
    said = run("adapters", "register", "x", str(make_adapter()), "--base", ".", code=2)
    assert "--base is what the original of a fit is run on" in said


def test_data_that_cannot_be_read_registers_nothing(
    make_adapter: AdapterFactory, registry: Registry, tmp_path: Path
) -> None:
    (tmp_path / "data.jsonl").write_text("no JSON\n")
    for data in ("data.jsonl", "none.jsonl"):
        flags = ("--fit-rank", "--data", str(tmp_path / data))
        said = run("adapters", "register", "x", str(make_adapter(rank=12)), *flags, code=2)
        assert data in said
    assert not registry.catalog.adapters


def test_what_could_not_be_scored_is_registered_and_said(
    make_adapter: AdapterFactory, tmp_path: Path
) -> None:
    """The base of this server is on no disk, so the original cannot be run."""
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"prompt": "1 + 1 =", "completion": "2"}))
    large = str(make_adapter(rank=12))
    flags = ("--fit-rank", "--data", str(data), "--json")
    done = CliRunner().invoke(main.app, ["adapters", "register", "large", large, *flags])
    assert done.exit_code == 1
    assert json.loads(done.stdout)["model"] == "default/large@2", "one document"
    assert "the fit was not compared with its original: " in done.stderr
    assert "default/large@2 is registered, and was not scored on --data" in done.stderr
    said = run("adapters", "register", "small", str(make_adapter()), *flags[:3])
    assert "--data was not used: default/small@1 is no fit" in said


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


def test_the_plan_counts_an_adapter_once_that_is_served_and_in_a_folder(
    make_adapter: AdapterFactory, tmp_path: Path
) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(BASE | {"vocab_size": 32}))
    small, large, other = (make_adapter(rank=rank) for rank in (2, 12, 4))
    for name, folder in (("small", small), ("large", large)):
        run("adapters", "register", name, str(folder), "--fit-rank")
    folders = [f"--adapters={folder}" for folder in (small, large, other)]
    arguments = ("plan", "--base", str(config), *folders, "--served", "--json")
    facts = json.loads(run(*arguments))["rank_limits"]
    assert facts["num_adapters"] == 3, "of a fit its original is compared"
