"""Records whether the engine makes progress. Readiness and the check for a hang both use it.

A *sign of life* is anything that the engine's process sends: a step's output or the answer to a
call. A *step* counts only if it computed something for a request. The time is always an argument.
"""

from __future__ import annotations

import math


class Progress:
    """The times of the engine's last step and last finite token, and for how long it is silent."""

    def __init__(self) -> None:
        self.silent_seconds = 0.0
        """Time without a sign of life, except for time in which this process itself stood still."""
        self._step_at = -math.inf
        self._finite_at = -math.inf

    def sign_of_life(self) -> None:
        """Note that the engine's process has sent something."""
        self.silent_seconds = 0.0

    def step(self, now: float) -> None:
        """Note that a step has ended that computed tokens, of prompts or of answers."""
        self._step_at = now

    def finite_token(self, now: float) -> None:
        """Note a token whose log-probability was read and is a number."""
        self._finite_at = now

    def tick(self, elapsed_seconds: float, longest_seconds: float) -> None:
        """Count time that has passed without a sign of life.

        At most `longest_seconds` count. If this process itself stood still, the engine may have
        sent messages that are not read yet.
        """
        self.silent_seconds += min(elapsed_seconds, longest_seconds)

    def seconds_since_step(self, now: float) -> float:
        """Return how long ago the last step ended; infinite before the first."""
        return now - self._step_at

    def seconds_since_finite_token(self, now: float) -> float:
        """Return how long ago a token was last found to be finite; infinite before the first."""
        return now - self._finite_at
