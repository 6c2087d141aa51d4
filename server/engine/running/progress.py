"""Whether the engine makes progress: the one signal behind readiness and the watch for a hang.

A *sign of life* is anything that the engine's process sends: a step's output or the answer to a
call. A *step* is one that computed something for a request. Pure: the time is an argument.
"""

from __future__ import annotations

import math


class Progress:
    """When the engine's last step ended, and for how long the engine has been silent."""

    def __init__(self) -> None:
        self.silent_seconds = 0.0
        """Time without a sign of life, as far as this process was awake to notice one."""
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

        At most `longest_seconds` count. If this process itself stood still, then the engine's
        messages may be there but unread, and the engine must not be blamed for that.
        """
        self.silent_seconds += min(elapsed_seconds, longest_seconds)

    def seconds_since_step(self, now: float) -> float:
        """Return how long ago the last step ended; infinite before the first."""
        return now - self._step_at

    def seconds_since_finite_token(self, now: float) -> float:
        """Return how long ago a token was last found to be finite; infinite before the first."""
        return now - self._finite_at
