"""Which tokens are guessed from those before."""

import numpy as np
import pytest

from server.engine.worker.speculation.lookup import LONGEST, SEPARATOR, guess


@pytest.mark.parametrize(
    ("tokens", "count", "guessed"),
    [
        ([1, 2, 3, 4, 1, 2], 2, [3, 4]),
        ([1, 2, 3, 4, 1, 2], 9, [3, 4, 1, 2]),
        ([1, 2, 3, 1, 2, 4, 1, 2], 1, [4]),  # the last such place
        ([9, 1, 2, 3, 8, 1, 2, 4, 9, 1, 2], 1, [3]),  # more of the last tokens stood there
        ([1, 2, 3, 2], 3, []),  # one token is too few
        ([1, 2, 3], 3, []),
        ([7, 7, 7], 3, [7]),
        ([1, 2], 3, []),
        ([], 3, []),
        ([1, 2, 3, 4, 1, 2], 0, []),
        ([1, 2, 3, SEPARATOR, 4, 1, 2], 4, [3]),
        ([1, 2, SEPARATOR, 3, 1, 2], 4, []),
    ],
)
def test_guesses(tokens: list[int], count: int, guessed: list[int]) -> None:
    assert guess(np.array(tokens, np.int32), count) == guessed


def test_no_more_tokens_are_compared_than_are_needed() -> None:
    same = list(range(LONGEST))
    tokens = [50, *same, 60, 51, *same, 61, 50, *same]
    assert guess(np.array(tokens, np.int32), 1) == [61]
