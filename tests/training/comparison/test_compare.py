"""The comparison on a tiny base, and its verdicts on made-up rows."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from server.cli.main import app
from training.comparison import trial
from training.comparison.arms import PROMPT, make_arms
from training.comparison.compare import compare
from training.comparison.recommendation import caveats
from training.data.conversations import exchange
from training.data.reading import write_conversations
from training.data.recipe import make_recipe
from training.errors import TrainingError

TRAIN = [exchange(f"say {word}", word) for word in ("ping", "pong", "tick", "tock") * 5]
TEST = TRAIN[:3]
RECIPE = make_recipe({"rank": 2, "num_steps": 2, "batch_size": 2, "validation_share": 0.2})


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Trials run here, which saves seconds of imports each; their names are noted."""
    names: list[str] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        names.append(Path(command[-1]).name)
        trial.carry_out(Path(command[-1]))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    return names


def test_every_arm_searches_its_rate_and_runs_with_every_seed(
    tiny_llama: Path, tmp_path: Path, in_this_process: list[str]
) -> None:
    arms = make_arms(RECIPE, ["lora"], [], [])
    options: dict[str, Any] = {"metric": "loss", "seeds": (0, 1), "rate_factors": (0.1, 1)}
    comparison = compare(tiny_llama, TRAIN, TEST, arms, tmp_path / "out", **options)
    assert in_this_process == [
        "prompt-only",
        "lora-r2-rate0.0001",
        "lora-r2-rate0.001",
        "lora-r2-seed0",
        "lora-r2-seed1",
    ]
    prompt, lora = comparison.rows
    assert (prompt.name, prompt.num_trainable, prompt.learning_rate) == (PROMPT, 0, None)
    assert lora.num_trainable > 0
    assert lora.artefact_bytes > 0
    assert len(lora.by_seed("loss")) == 2
    assert lora.peak_memory_mib > 0
    assert lora.learning_rate in {0.0001, 0.001}
    assert len(lora.scores.values["loss"]) == 3
    repeated = compare(tiny_llama, TRAIN, TEST, arms, tmp_path / "out", **options)
    assert len(in_this_process) == 5, "what is done isn't done again"
    assert repeated == comparison
    assert [line.partition(":")[0] for line in caveats(comparison)] == ["lora r=2"]

    changed = make_arms(replace(RECIPE, num_steps=3), ["lora"], [], [])
    compare(tiny_llama, TRAIN, TEST, changed, tmp_path / "out", **options)
    assert in_this_process[5:] == in_this_process[1:5], "another job's result isn't taken"
    compare(tiny_llama, TRAIN, TEST[:2], changed[:1], tmp_path / "out", **options)
    assert in_this_process[9:] == ["prompt-only"]


def test_equal_time_measures_the_pace_first(
    tiny_llama: Path, tmp_path: Path, in_this_process: list[str]
) -> None:
    arms = make_arms(RECIPE, ["full"], [], [])[1:]
    options: dict[str, Any] = {"seeds": (0,), "rate_factors": (1,), "minutes": 1e-9}
    compare(tiny_llama, TRAIN, TEST, arms, tmp_path / "out", **options)
    assert in_this_process == ["full-probe", "full-seed0"]
    directory = tmp_path / "out" / "trials" / "full-seed0"
    assert json.loads((directory / "trial.json").read_text())["recipe"]["num_steps"] == 1
    assert not list((directory / "model").glob("*.safetensors")), "whole models take much room"


def test_the_command_writes_a_report(
    tiny_llama: Path, tmp_path: Path, in_this_process: list[str]
) -> None:
    for name, chats in (("train", TRAIN), ("test", TEST)):
        write_conversations(tmp_path / f"{name}.jsonl", chats)
    arguments = [
        *("compare", tmp_path / "out", "--base", tiny_llama, "--method", "lora", "--steps", 1),
        *("--data", tmp_path / "train.jsonl", "--test", tmp_path / "test.jsonl", "--rate", 1),
        *("--rank", 2, "--rank", 4, "--seeds", 1, "--batch-size", 2, "--price", 3),
    ]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    facts = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert [row["name"] for row in facts["rows"]] == [PROMPT, "lora r=2", "lora r=4"]
    assert " ".join(facts["recommendation"].split()) in " ".join(result.output.split())
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert "lora r=4" in page
    assert "data:image/png;base64," in page
    assert (tmp_path / "out" / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_held_out(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="nothing is held out"):
        compare(tiny_llama, TRAIN, [], [], tmp_path / "out")
