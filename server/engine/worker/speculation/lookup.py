"""Guesses the next tokens: those that followed where the last ones stood before. Pure."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int32]

SHORTEST, LONGEST = 2, 8
"""How many of the last tokens must have stood there, and how many are compared at most."""

SEPARATOR = -1
"""Stands between texts. No guess goes on behind it."""


def guess(tokens: Tokens, count: int) -> list[int]:
    """Return up to `count` tokens that may follow.

    They are those behind the place that has most of the last tokens, and of such places the last.
    """
    if count < 1 or len(tokens) <= SHORTEST:
        return []
    # Each end is the place behind tokens that are the last ones, too.
    ends = np.flatnonzero(tokens[:-1] == tokens[-1]) + 1
    for length in range(2, min(LONGEST, len(tokens) - 1) + 1):
        far_enough = ends[ends >= length]
        longer = far_enough[tokens[far_enough - length] == tokens[-length]]
        if not longer.size:
            if length <= SHORTEST:
                return []
            break
        ends = longer
    following: list[int] = tokens[ends[-1] : ends[-1] + count].tolist()
    return following[: following.index(SEPARATOR)] if SEPARATOR in following else following
