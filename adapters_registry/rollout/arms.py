"""What was counted of one side of a split. Counts of several servers add up. Pure."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

GROWTH = 1.02
"""Each bucket of times is so much longer than the one before, so a time is known to 1 %. DDSketch
(Masson, Rim and Lee, 2019) has the same buckets."""
SHORTEST_SECONDS = 1e-5


@dataclass
class ArmCounts:
    """The requests of one version in one split."""

    requests: int = 0
    errors: int = 0
    tokens: int = 0
    """Of the answers that did not fail."""
    tokens_squared: int = 0
    """The sum of the squares of their lengths."""
    first_tokens: Counter[int] = field(default_factory=Counter)
    """How many answers had their first token within each bucket of times."""

    def add(self, *, failed: bool, tokens: int = 0, first_token: float | None = None) -> None:
        """Count one request. `first_token` is the time to it, in seconds.

        Of a failed request only that counts: its answer says nothing.
        """
        self.requests += 1
        if failed:
            self.errors += 1
            return
        self.tokens += tokens
        self.tokens_squared += tokens * tokens
        if first_token is not None:
            self.first_tokens[_bucket_of(first_token)] += 1

    def __add__(self, other: ArmCounts) -> ArmCounts:
        return ArmCounts(
            self.requests + other.requests,
            self.errors + other.errors,
            self.tokens + other.tokens,
            self.tokens_squared + other.tokens_squared,
            self.first_tokens + other.first_tokens,
        )

    @property
    def answers(self) -> int:
        """Return the number of requests that did not fail."""
        return self.requests - self.errors

    @property
    def first_token_seconds(self) -> dict[float, int]:
        """Return how many answers had their first token after so many seconds, to about 1 %."""
        return {GROWTH ** (bucket + 0.5): count for bucket, count in self.first_tokens.items()}

    def to_json(self) -> dict[str, Any]:
        """Return the counts as the database keeps them."""
        buckets = {str(bucket): count for bucket, count in self.first_tokens.items()}
        return {**vars(self), "first_tokens": buckets}

    @classmethod
    def of(cls, kept: dict[str, Any]) -> ArmCounts:
        """Return what `to_json` has kept."""
        buckets = Counter({int(bucket): n for bucket, n in kept["first_tokens"].items()})
        return cls(**{**kept, "first_tokens": buckets})


def _bucket_of(seconds: float) -> int:
    return math.floor(math.log(max(seconds, SHORTEST_SECONDS)) / math.log(GROWTH))
