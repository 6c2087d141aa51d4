"""What became of one request. Times are seconds from the start of the run."""

from __future__ import annotations

from dataclasses import dataclass, field

from loadtest.outcome.streams import Token

OK = "ok"
HUNG_UP = "hung_up"
"""The client disconnected as planned: neither a success nor an error."""
UNFINISHED = "unfinished"
WRONG = ("wrong_adapter", "mixed_version", "wrong_answer", "stale_version")
"""Answers that aren't true; any of them fails the run."""


@dataclass(slots=True)
class Outcome:
    """One request: when, for whom, and how it ended."""

    tenant: str
    model: str
    """As asked for."""
    due: float
    """When the schedule wanted it; in a closed loop, when its client was free."""
    woken: float
    """When the tester got round to it: later than `due` means that the tester lags."""
    sent: float
    """When it was sent: later than `woken` where it waited for its turn in the client."""
    asked_tokens: int
    is_check: bool = False
    status: str = OK
    detail: str = ""
    first: float | None = None
    """The first token."""
    done: float = 0.0
    gaps: list[float] = field(default_factory=list)
    tokens_in: int = 0
    tokens_out: int = 0
    version: str = ""
    """What the server says that answered."""
    is_mixed: bool = False
    """It says several versions."""
    tier: str = ""
    text: str = ""
    tokens: list[Token] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether it was answered in full, and nothing is known to be wrong."""
        return self.status == OK

    @property
    def is_error(self) -> bool:
        """Whether it counts as an error."""
        return self.status not in (OK, HUNG_UP)

    @property
    def ttft(self) -> float | None:
        """Seconds to the first token, from when it was due."""
        return None if self.first is None else self.first - self.due

    @property
    def e2e(self) -> float:
        """Seconds to the last byte, from when it was due."""
        return self.done - self.due

    @property
    def tpot(self) -> float | None:
        """Mean seconds for each token after the first."""
        if self.first is None or self.tokens_out < 2:
            return None
        return sum(self.gaps) / (self.tokens_out - 1)
