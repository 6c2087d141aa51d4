"""What is remembered of answers."""

from server.engine.worker.speculation import recent_answers
from server.engine.worker.speculation.lookup import LONGEST, SEPARATOR
from server.engine.worker.speculation.recent_answers import MOST_TOKENS, RecentAnswers


def test_answers_follow_the_ends_of_their_prompts() -> None:
    answers = RecentAnswers()
    prompt = list(range(100, 100 + 2 * LONGEST))
    answers.add((1, "a"), prompt, [1, 2])
    answers.add((1, "a"), [5], [3])
    end = prompt[-LONGEST:]
    assert answers.of((1, "a")).tolist() == [*end, 1, 2, SEPARATOR, 5, 3, SEPARATOR]


def test_adapters_and_salts_are_kept_apart() -> None:
    answers = RecentAnswers()
    answers.add((1, "a"), [5], [3])
    for key in ((1, "b"), (2, "a"), (0, "a")):
        assert not len(answers.of(key))


def test_an_answer_without_tokens_is_none() -> None:
    answers = RecentAnswers()
    answers.add((1, "a"), [5], [])
    assert not len(answers.of((1, "a")))


def test_old_tokens_and_unused_keys_are_dropped() -> None:
    answers = RecentAnswers()
    answers.add((1, "a"), [5], [7])
    answers.add((1, "a"), [5], list(range(MOST_TOKENS)))
    kept = answers.of((1, "a")).tolist()
    assert len(kept) == MOST_TOKENS
    assert kept[-2:] == [MOST_TOKENS - 1, SEPARATOR]
    for number in range(recent_answers.MOST_KEYS - 1):
        answers.add((2, str(number)), [5], [7])
    assert len(answers.of((1, "a")))  # used just now
    answers.add((3, ""), [5], [7])
    assert not len(answers.of((2, "0")))
    assert len(answers.of((1, "a")))
