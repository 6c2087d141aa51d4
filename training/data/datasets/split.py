"""Splits a data set into training and test examples, and holds out whole groups."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from training.data.conversations import Conversation

HELD_OUT_SHARE = 0.15
MIN_TEST = 100
"""The smallest number of examples to evaluate on."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class Split:
    """Training and test conversations whose groups don't overlap."""

    train: list[Conversation]
    test: list[Conversation]


def hold_out(groups: Sequence[Item], rng: random.Random) -> tuple[list[Item], list[Item]]:
    """Return the groups to train on, and a random share to test on, at least one."""
    shuffled = rng.sample(groups, len(groups))
    cut = max(1, round(len(shuffled) * HELD_OUT_SHARE))
    return shuffled[cut:], shuffled[:cut]


def num_to_test(size: int) -> int:
    """Return the number of test examples for `size` training examples."""
    return max(MIN_TEST, size // 10)


def repeated(items: Sequence[Item], count: int, rng: random.Random) -> list[Item]:
    """Return `count` items in random order. They repeat if there are fewer items."""
    shuffled = rng.sample(items, len(items))
    return [shuffled[index % len(shuffled)] for index in range(count)]
