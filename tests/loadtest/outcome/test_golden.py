"""Golden answers tell versions apart, and not the noise of a batch."""

from loadtest.outcome.golden import (
    NEVER,
    Change,
    GoldenAnswer,
    GoldenSet,
    contradiction,
    distance,
    stale,
)
from loadtest.outcome.request_outcome import Outcome
from loadtest.outcome.streams import Token


def answer(*tokens: tuple[str, float], shift: float = 0.0, near: str | None = None) -> GoldenAnswer:
    """Tokens with log-probabilities; `near` is nearly as likely as each."""
    made = []
    for text, logprob in tokens:
        likeliest = {text: logprob} | ({near: logprob - 0.01} if near else {})
        made.append(Token(text, logprob + shift, likeliest))
    return GoldenAnswer("".join(text for text, _ in tokens), tuple(made))


A = answer(("Paris", -0.1), (".", -0.2), (" It", -0.3))
B = answer(("Paris", -0.9), (",", -0.2), (" a", -0.3))
C = answer(("Rome", -0.1), ("!", -0.2), (" It", -0.9))


def truth() -> GoldenSet:
    found = GoldenSet()
    for version, golden in (("t/a@1", A), ("t/b@1", B), ("t/c@1", C)):
        found.record(version, 0, [golden, golden])
    return found


def test_its_own_answer_is_right_another_ones_wrong() -> None:
    checked = truth()
    assert checked.judge({"t/a@1"}, 0, A) is None
    assert checked.num_right == 1
    assert checked.judge({"t/a@1"}, 0, B) == "wrong_adapter"
    assert checked.explain({"t/a@1"}, 0, B).endswith("; it is that of t/b@1")
    assert checked.judge({"t/a@1"}, 0, answer(("London", -0.1))) == "wrong_answer"


def test_an_answer_that_changes_midway_is_mixed() -> None:
    mixed = GoldenAnswer("", (*A.tokens[:1], *C.tokens[1:]))
    assert truth().judge({"t/a@1"}, 0, mixed) == "mixed_version"


def test_noise_is_learnt_and_forgiven() -> None:
    noisy = answer(("Paris", -0.1), (".", -0.2), (" It", -0.3), shift=-0.2)
    checked = truth()
    assert checked.judge({"t/a@1"}, 0, noisy) == "wrong_answer"
    checked.record("t/a@1", 0, [A, answer(("Paris", -0.1), (".", -0.2), (" It", -0.3), shift=0.15)])
    assert checked.judge({"t/a@1"}, 0, noisy) is None


def test_near_ties_may_turn_out_either_way() -> None:
    golden = answer(("x", -0.7), ("y", -0.7), near="z")
    assert distance(golden, answer(("x", -0.7), ("z", -0.6))) < 0.05
    assert distance(golden, answer(("x", -0.7), ("w", -0.6))) > 10


def test_without_log_probabilities_only_equal_text_is_right() -> None:
    checked = GoldenSet()
    checked.record("a", 0, [GoldenAnswer("yes")])
    assert checked.judge({"a"}, 0, GoldenAnswer("yes")) is None
    assert checked.judge({"a"}, 0, GoldenAnswer("no")) == "wrong_answer"


def test_versions_that_cant_be_told_apart_are_counted() -> None:
    checked = truth()
    assert checked.blind_share() == 0
    checked.record("t/d@1", 0, [A])
    assert checked.blind_share() == 1 / 6


def test_an_unknown_version_is_neither_right_nor_wrong() -> None:
    checked = truth()
    assert checked.judge({"t/a@9"}, 0, A) is None
    assert (checked.num_right, checked.num_unchecked) == (0, 1)


def outcome(model: str, version: str, sent: float = 0.0, done: float = 1.0) -> Outcome:
    made = Outcome("t", model, sent, sent, sent, 1)
    made.version, made.done = version, done
    return made


def test_responses_that_contradict_the_request_are_wrong() -> None:
    assert contradiction(outcome("a", "t/a@1")) is None
    assert contradiction(outcome("t/a@2", "t/a@2")) is None
    assert contradiction(outcome("a@canary", "t/a@2")) is None
    assert contradiction(outcome("a", "t/b@1")) == "wrong_adapter"
    assert contradiction(outcome("base", "t/b@1")) == "wrong_adapter"
    assert contradiction(outcome("a@1", "t/a@2")) == "wrong_adapter"
    mixed = outcome("a", "t/a@1")
    mixed.is_mixed = True
    assert contradiction(mixed) == "mixed_version"


def test_what_was_replaced_before_it_was_asked_for_is_stale() -> None:
    changes = [Change("a", "t/a@2", 1.0, 1.5), Change("a", "t/a@3", 3.0, 3.5)]
    fine = [
        outcome("a", "t/a@1", 1.2, 1.3),  # not yet acknowledged
        outcome("a", "t/a@2", 1.2, 1.3),  # already done
        outcome("a", "t/a@2", 2.0, 2.1),
        outcome("a", "t/a@3", 2.9, 3.1),  # overtaken while it waited
        outcome("a", "t/a@3", 4.0, 4.1),
    ]
    late = [outcome("a", "t/a@1", 1.6, 2.0), outcome("a", "t/a@2", 4.0, 4.1)]
    assert stale(fine + late, changes) == {"a": 2}
    assert all(made.ok for made in fine)
    assert {made.status for made in late} == {"stale_version"}


def test_a_name_without_versions_means_what_the_changes_say() -> None:
    checked = GoldenSet(changes=[Change("a", "a--1", 1.0, 1.5), Change("a", "a--2", 3.0, NEVER)])
    assert checked.expected(outcome("a", "a", 0.5, 0.9)) == {"a"}
    assert checked.expected(outcome("a", "a", 0.5, 1.1)) == {"a", "a--1"}
    assert checked.expected(outcome("a", "a", 2.0, 2.5)) == {"a--1"}
    assert checked.expected(outcome("a", "a", 4.0, 4.5)) == {"a--1", "a--2"}
    assert checked.expected(outcome("a", "t/a@7", 4.0, 4.5)) == {"t/a@7"}
