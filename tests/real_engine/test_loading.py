"""Adapters come and go in a real engine: the right answers, no need of files, memory freed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

NOISE = 0.15
"""Bound on the mean difference of log-probabilities between two runs of one model."""


@pytest.fixture(scope="module")
def happened(tmp_path_factory: pytest.TempPathFactory) -> Any:
    directory = tmp_path_factory.mktemp("adapters")
    result = subprocess.run(
        [sys.executable, "-m", "tests.real_engine.loading_cycles", str(directory)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def distance(one: Any, other: Any) -> float:
    """How far the log-probabilities are apart, of the prompt and of tokens that both answered."""
    pairs = list(zip(one["tokens"], other["tokens"], strict=True))
    same = next((n for n, (a, b) in enumerate(pairs) if a != b), len(pairs))
    prompt = zip(one["prompt"], other["prompt"], strict=True)
    answer = zip(one["logprobs"][:same], other["logprobs"][:same], strict=True)
    return fmean(abs(a - b) for a, b in (*prompt, *answer))


def model_of(answer: Any, alone: list[Any]) -> int:
    """Which model gave an answer; the next best must be clearly another."""
    near = sorted(range(len(alone)), key=lambda model: distance(answer, alone[model]))
    assert distance(answer, alone[near[0]]) < NOISE
    assert distance(answer, alone[near[1]]) > 3 * NOISE
    return near[0]


def test_each_answers_as_it_does_alone(happened: Any) -> None:
    alone = happened["alone"]
    assert len(happened["taking_turns"]) == 30
    for model, answer in happened["taking_turns"]:
        assert model_of(answer, alone) == model


def test_only_the_named_victim_leaves_its_slot_and_nobody_host_memory(happened: Any) -> None:
    # More in host memory than the setting says: that budget is for the server to keep.
    assert [len(happened["when_full"][tier]) for tier in ("slots", "host")] == [2, 5]


def test_evicting_what_runs_waits_for_it(happened: Any) -> None:
    found, alone = happened["evicted_while_running"], happened["alone"]
    assert model_of(found["answer"], alone) == 1
    assert model_of(found["after"], alone) == 2
    assert found["gone"] not in found["slots"] + found["host"]
    assert len(found["slots"]) == len(found["host"]) == 2


def test_what_cannot_be_read_leaves_nothing(happened: Any) -> None:
    messages = happened["refused"]["messages"]
    assert set(messages) == {"broken", "missing", "unknown"}
    assert "could not be loaded" in messages["broken"]
    for message in messages.values():
        assert happened["directory"] not in message, "a path is nobody's business"
    assert "isn't in the engine's memory" in messages["unknown"]
    assert happened["refused"]["slots"] == happened["refused"]["host"] == []


def test_memory_is_given_back(happened: Any) -> None:
    _, half, end = happened["memory"]
    assert end - half < 20e6, "40 loads of 3 to 5 MB, or more"
    assert happened["in_the_end"] == {"slots": [], "host": []}
