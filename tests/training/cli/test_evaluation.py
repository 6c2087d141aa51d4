"""`loraplex evaluate` as a person would call it."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from server.cli.main import app
from tests.training.adapters import make_adapter
from training.data.conversations import exchange
from training.data.reading import write_conversations
from training.errors import DataError
from training.evaluation.candidates import LocalModel
from training.evaluation.evaluate import evaluate

DATA = [
    exchange("ping", "pong"),
    exchange("a much longer question, for padding", '{"answer": 1}'),
    exchange("tick", "tock tock"),
]


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_conversations(tmp_path / "data.jsonl", DATA)
    return tmp_path / "data.jsonl"


def test_the_command_compares_and_gates(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tiny_llama, tmp_path / "adapter")
    options = ("--data", data, "--base", tiny_llama, "--metric", "loss")
    facts = json.loads(run(adapter, "base", *options, "--json"))
    assert facts["num_examples"] == 3
    assert facts["scores"].keys() == {str(adapter), "base"}
    gap = facts["first_minus"]["base"]
    assert gap["low"] <= gap["mean"] <= gap["high"]
    losses = {name: score["loss"] for name, score in facts["scores"].items()}
    assert gap["mean"] == pytest.approx(losses[str(adapter)] - losses["base"], abs=2e-4)

    better, worse = sorted(losses, key=losses.__getitem__)
    middle = sum(losses.values()) / 2
    run(better, *options, "--fail-under", middle, "--no-worse-than", better, "--margin", 0)
    run(worse, *options, "--no-worse-than", better, "--margin", 100)
    gates = ("--fail-under", middle, "--no-worse-than", better, "--margin", 0)
    text = run(worse, *options, *gates, code=1)
    assert "loss is" in text
    assert "can't be ruled out" in text


def test_what_cannot_be_evaluated(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    base = ("--base", tiny_llama)
    assert "give --data or --recipe" in run("base", *base, code=2)
    assert "can't be evaluated" in run(tmp_path, "--data", data, *base, code=2)
    assert "--over must be trained" in run("base", "--data", data, *base, "--over", "x", code=2)
    assert "no json_valid" in run(
        *("base", "--data", data, *base, "--metric", "json_valid"), code=2
    )
    assert "--metric must be one of" in run("base", "--data", data, *base, "--metric", "f1", code=2)
    with pytest.raises(DataError, match="nothing to evaluate on"):
        evaluate(LocalModel(tiny_llama), tiny_llama, [])
