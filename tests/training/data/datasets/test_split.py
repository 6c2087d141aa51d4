import random

from training.data.datasets.split import hold_out, num_to_test, repeated


def test_a_share_of_the_groups_is_held_out() -> None:
    train, test = hold_out(range(100), random.Random(0))
    assert len(test) == 15
    assert sorted(train + test) == list(range(100))
    assert len(hold_out("ab", random.Random(0))[1]) == 1


def test_items_come_again_where_there_are_too_few() -> None:
    assert sorted(repeated("ab", 4, random.Random(0))) == ["a", "a", "b", "b"]
    assert len(set(repeated(range(9), 4, random.Random(0)))) == 4


def test_how_many_are_tested_on() -> None:
    assert (num_to_test(50), num_to_test(5000)) == (100, 500)
