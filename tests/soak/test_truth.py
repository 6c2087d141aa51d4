"""Which answers a soak takes for right, and which for wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest

from loadtest.outcome.golden import GoldenAnswer
from loadtest.outcome.request_outcome import HUNG_UP, Outcome
from loadtest.outcome.streams import Token
from tests.soak.truth import BASE, Question, Timeline, Truth

HOME, LEFT = "acme/home", Question("acme", "home", False, 8, 2, subject="acme/home")
ASKED = replace(LEFT, hang_up_after=None)


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def tokens(words: str) -> list[Token]:
    return [Token(word, -1.0, {word: -1.0}) for word in words.split()]


def answer(words: str) -> GoldenAnswer:
    return GoldenAnswer(words, tuple(tokens(words)))


def answered(version: str, words: str, *, at: float = 10.0, status: str = "ok") -> Outcome:
    outcome = Outcome("acme", "home", at, at, at, 8, status=status)
    outcome.answered, outcome.done, outcome.version = at + 1, at + 5, version
    outcome.tokens, outcome.text = tokens(words), words
    return outcome


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def truth(clock: Clock) -> Truth:
    truth = Truth(Timeline(clock))
    for content, words in (
        ("1", "one sheep"),
        ("2", "two goats"),
        (BASE, "no animal"),
        ("1*0.7+2*0.3", "both"),
    ):
        truth.golden.add(content, 0, answer(words))
    truth.contents |= {f"{HOME}@1": "1", f"{HOME}@2": "2", "acme/other@1": "2"}
    with truth.timeline.changing(HOME, 1):
        clock.now = 1.0
    return truth


def kind_of(truth: Truth, asked: Question, outcome: Outcome) -> str | None:
    fault = truth.fault(asked, outcome)
    return fault[0] if fault else None


def test_an_own_answer_is_right_and_measured(truth: Truth) -> None:
    assert truth.fault(ASKED, answered(f"{HOME}@1", "one sheep and more")) is None
    assert truth.distances == [0.0]


@pytest.mark.parametrize(
    ("version", "words", "kind"),
    [
        (f"{HOME}@1", "two goats", "wrong_adapter"),
        (f"{HOME}@1", "one goats", "wrong_answer"),
        (f"{HOME}@1", "a cow", "wrong_answer"),
        (f"{HOME}@1", "", "wrong_answer"),
        (f"{HOME}@2", "two goats", "stale_version"),
        ("acme/other@1", "two goats", "wrong_adapter"),
        (BASE, "no animal", "wrong_adapter"),
    ],
)
def test_another_answer_is_wrong(truth: Truth, version: str, words: str, kind: str) -> None:
    assert kind_of(truth, ASKED, answered(version, words)) == kind


@pytest.mark.parametrize(
    ("off", "nearer", "kind"),
    [(0.45, False, None), (0.45, True, "wrong_adapter"), (0.65, False, "wrong_answer")],
)
def test_an_answer_that_is_far_off_is_right_if_no_other_is_nearer(
    truth: Truth, off: float, nearer: bool, kind: str | None
) -> None:
    said = [Token(word, off - 1.0, {word: off - 1.0}) for word in ["one", "sheep", "grazes"]]
    truth.golden.add("1", 0, answer("one sheep grazes"))
    if nearer:
        truth.golden.add("3", 0, GoldenAnswer("one sheep grazes", tuple(said)))
    outcome = answered(f"{HOME}@1", "one sheep grazes")
    outcome.tokens = said
    assert kind_of(truth, ASKED, outcome) == kind
    assert truth.distances == pytest.approx([] if kind else [off])


def test_an_answer_that_names_two_versions_is_wrong(truth: Truth) -> None:
    outcome = answered(f"{HOME}@1", "one sheep")
    outcome.is_mixed = True
    assert kind_of(truth, ASKED, outcome) == "mixed_version"


def test_around_a_change_both_versions_may_answer(truth: Truth, clock: Clock) -> None:
    """It was asked for at 20 and acknowledged at 25."""
    clock.now = 20.0
    with truth.timeline.changing(HOME, 2):
        clock.now = 25.0
    old, new = (f"{HOME}@1", "one sheep"), (f"{HOME}@2", "two goats")
    assert kind_of(truth, ASKED, answered(*old, at=22)) is None
    assert kind_of(truth, ASKED, answered(*new, at=19.5)) is None
    assert kind_of(truth, ASKED, answered(*old, at=25.5)) == "stale_version"
    assert kind_of(truth, ASKED, answered(*new, at=18)) == "stale_version"


def test_both_sides_of_a_canary_may_answer(truth: Truth, clock: Clock) -> None:
    with truth.timeline.changing(HOME, 1, 2):
        clock.now = 2.0
    assert kind_of(truth, ASKED, answered(f"{HOME}@1", "one sheep")) is None
    assert kind_of(truth, ASKED, answered(f"{HOME}@2", "two goats")) is None


def test_after_a_change_that_failed_either_may_answer(truth: Truth, clock: Clock) -> None:
    with pytest.raises(RuntimeError), truth.timeline.changing(HOME, 2):
        raise RuntimeError
    assert truth.timeline.meant(HOME, 90, 91) == {1, 2}


def test_a_version_that_is_named_must_answer(truth: Truth) -> None:
    asked = replace(ASKED, model="home@2", number=2)
    assert kind_of(truth, asked, answered(f"{HOME}@2", "two goats")) is None
    assert kind_of(truth, asked, answered(f"{HOME}@1", "one sheep")) == "stale_version"


def test_what_a_client_left_is_compared_as_far_as_it_came(truth: Truth) -> None:
    assert truth.fault(LEFT, answered(f"{HOME}@1", "one", status=HUNG_UP)) is None
    assert truth.fault(LEFT, answered(f"{HOME}@1", "", status=HUNG_UP)) is None
    assert kind_of(truth, LEFT, answered(f"{HOME}@1", "two", status=HUNG_UP)) == "wrong_adapter"


def test_the_base_and_compositions(truth: Truth) -> None:
    base = Question("acme", "base", False, 8)
    assert kind_of(truth, base, answered(BASE, "no animal")) is None
    assert kind_of(truth, base, answered(BASE, "one sheep")) == "wrong_adapter"
    assert kind_of(truth, base, answered(f"{HOME}@1", "no animal")) == "wrong_adapter"
    both = Question("acme", "home*0.7+other*0.3", False, 8, content="1*0.7+2*0.3")
    assert kind_of(truth, both, answered("acme/composed@7", "both")) is None
    assert kind_of(truth, both, answered("acme/composed@7", "one sheep")) == "wrong_adapter"
    assert kind_of(truth, both, answered("else/composed@7", "both")) == "wrong_adapter"


def test_pairs_that_nobody_can_tell_apart_are_counted(truth: Truth) -> None:
    assert truth.golden.num_blind() == (0, 6)
    truth.golden.add("3", 0, answer("one sheep"))
    truth.golden.add("4", 1, answer("one sheep"))
    assert truth.golden.num_blind() == (1, 10)
