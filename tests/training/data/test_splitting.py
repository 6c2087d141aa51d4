"""No prompt stands on both sides of a split."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.data.conversations import Conversation, exchange
from training.data.splitting import held_out, num_duplicates, prompt_of, split_off
from training.errors import DataError

DISTINCT = [exchange(f"question {number}", "answer") for number in range(40)]


def test_a_share_is_split_off() -> None:
    rest, part = split_off(DISTINCT, 0.25, seed=3)
    assert len(part) == 10
    assert sorted(map(prompt_of, rest + part)) == sorted(map(prompt_of, DISTINCT))
    assert split_off(DISTINCT, 0.25, seed=3) == (rest, part)
    assert split_off(DISTINCT, 0.25, seed=4) != (rest, part)
    assert split_off(DISTINCT, 0, seed=3) == (DISTINCT, [])


def test_what_is_added_moves_hardly_anything() -> None:
    before = {prompt_of(c) for c in split_off(DISTINCT, 0.25, seed=3)[1]}
    more = [*DISTINCT, exchange("one more", "answer")]
    after = {prompt_of(c) for c in split_off(more, 0.25, seed=3)[1]}
    assert len(before - after) <= 1


@given(st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=60), st.integers(0, 9))
def test_a_prompt_is_on_one_side_only(prompts: list[str], seed: int) -> None:
    data = [exchange(prompt, str(number)) for number, prompt in enumerate(prompts)]
    if len(set(prompts)) < 2:
        with pytest.raises(DataError, match="too few"):
            split_off(data, 0.2, seed)
        return
    rest, part = split_off(data, 0.2, seed)
    assert rest
    assert part
    assert not {prompt_of(c) for c in rest} & {prompt_of(c) for c in part}


def test_each_line_twice_and_rounds_of_one_conversation() -> None:
    whole = Conversation([*DISTINCT[0].messages, *exchange("and then?", "more").messages])
    shouted = exchange("  QUESTION   0 ", "answer")
    assert prompt_of(whole) == prompt_of(DISTINCT[0]) == prompt_of(shouted)
    chosen = held_out(DISTINCT * 2, 0.25, seed=1)
    assert len(chosen) == 20
    assert {index % 40 for index in chosen} == {index for index in chosen if index < 40}
    assert num_duplicates(DISTINCT * 2) == 40
    assert num_duplicates([*DISTINCT, shouted]) == 0


def test_too_few() -> None:
    with pytest.raises(DataError, match=r"1 example\(s\) with 1 different prompt\(s\) are too few"):
        held_out(DISTINCT[:1], 0.25, seed=0)
    with pytest.raises(DataError, match="or --validation-share 0"):
        held_out([exchange("a", "b")] * 9, 0.25, seed=0)
