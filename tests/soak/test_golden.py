"""How far an answer is from a golden one."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtest.outcome.golden import GoldenAnswer
from loadtest.outcome.streams import Token
from tests.soak.golden import UNLISTED, GoldenAnswers, distance, is_like


def answer(*tokens: dict[str, float]) -> GoldenAnswer:
    """An answer whose tokens are the likeliest of each step."""
    chosen = [Token(max(step, key=step.__getitem__), max(step.values()), step) for step in tokens]
    return GoldenAnswer("".join(token.text for token in chosen), tuple(chosen))


GOLDEN = answer({"a": -0.5, "b": -1.0, "z": -6.0}, {"c": -0.2, "d": -2.0})


@pytest.mark.parametrize(
    ("other", "nats"),
    [
        (GOLDEN, 0.0),
        (answer({"a": -0.5, "b": -1.0}), 0.0),
        (answer({"a": -0.6, "b": -1.0}, {"c": -0.2, "d": -2.0}), 0.025),
        (answer({"a": -0.5, "b": -1.4}, {"c": -0.2, "d": -2.0}), 0.1),
        (answer({"a": -0.5, "b": -1.0}, {"c": -0.2, "d": -3.5}), 0.375),
        (answer({"a": -0.5, "b": -1.0, "z": -9.0}, {"c": -0.2, "d": -2.0}), 0.0),
        (answer({"a": -0.9, "b": -0.8}, {"x": -0.1}), 0.3),
        (answer({"a": -0.5, "b": -1.0}, {"c": -0.2, "e": -1.0}), 0.0),
        (answer({"a": -0.5, "b": -1.0}, {"e": -0.2, "c": -1.0}), UNLISTED),
        (answer({"a": -0.5, "b": -1.0}, {"d": -0.2, "c": -1.0}), UNLISTED),
    ],
)
def test_distance(other: GoldenAnswer, nats: float) -> None:
    """One of them is a near tie that ended the other way: what comes after isn't compared."""
    assert distance(GOLDEN, other) == pytest.approx(nats)


def test_an_answer_that_was_left_early_may_be_further_off() -> None:
    tokens = [{"a": -0.5, "b": -1.0}] * 3
    other = answer(*[{"a": -0.1, "b": -1.5}] * 3)
    assert distance(answer(*tokens), other) == pytest.approx(0.45)
    assert not is_like(answer(*tokens), other)
    assert is_like(answer(*tokens), GoldenAnswer("aa", other.tokens[:2]))


def test_golden_answers_are_kept_and_dropped_if_they_are_made_otherwise(tmp_path: Path) -> None:
    golden, file = GoldenAnswers(), tmp_path / "golden.json"
    golden.add("7", 1, GOLDEN)
    golden.write(file, ["a recipe"])
    same, other = GoldenAnswers(), GoldenAnswers()
    same.read(file, ["a recipe"])
    other.read(file, ["another one"])
    assert same == golden
    assert same.of("7", 1) == GOLDEN
    assert not other.answers
