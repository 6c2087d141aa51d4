"""Remembers recent answers, apart for each adapter and salt of the prefix cache. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from server.engine.worker.speculation.lookup import LONGEST, SEPARATOR, Tokens

MOST_TOKENS = 4096
"""For each key. To look through them takes some microseconds."""

MOST_KEYS = 256

Key = tuple[int, str]
"""The adapter's id, 0 for the base; and the salt, which is another one for each tenant. Otherwise
the speed of an answer would tell what other tenants have been answered."""

_NOTHING: Tokens = np.empty(0, np.int32)


class RecentAnswers:
    """The last tokens of answers by their key. Those that were used least recently are dropped."""

    def __init__(self) -> None:
        """Remember nothing."""
        self._tokens: OrderedDict[Key, Tokens] = OrderedDict()

    def of(self, key: Key) -> Tokens:
        """Return the tokens of a key's answers, the newest last, with separators."""
        if key not in self._tokens:
            return _NOTHING
        self._tokens.move_to_end(key)
        return self._tokens[key]

    def add(self, key: Key, prompt: Sequence[int], answer: Sequence[int]) -> None:
        """Remember an answer, and the end of its prompt, by which its beginning is found."""
        if not answer:
            return
        text = np.array([*prompt[-LONGEST:], *answer, SEPARATOR], np.int32)
        self._tokens[key] = np.concatenate((self.of(key), text))[-MOST_TOKENS:]
        self._tokens.move_to_end(key)
        if len(self._tokens) > MOST_KEYS:
            self._tokens.popitem(last=False)
