"""How one request ended. Times are seconds from the start of the run."""

from __future__ import annotations

from dataclasses import dataclass, field

from loadtest.outcome.streams import Token

OK = "ok"
HUNG_UP = "hung_up"
"""The client disconnected as planned. That is neither a success nor an error."""
UNFINISHED = "unfinished"
WRONG = ("wrong_adapter", "mixed_version", "wrong_answer", "stale_version")
"""Kinds of wrong answers. Any of them fails the run."""


@dataclass(slots=True)
class Outcome:
    """One request: its times, whose it is, and how it ended."""

    tenant: str
    model: str
    """The model that it asks for."""
    due: float
    """When the schedule wants it to be sent. In a closed loop, when its client was free."""
    woken: float
    """When the tester took it up. If it is later than `due`, the tester lags."""
    sent: float
    """When it was sent. It is later than `woken` if it waited in the client's queue."""
    asked_tokens: int
    is_check: bool = False
    status: str = OK
    detail: str = ""
    answered: float | None = None
    """When the answer's headers came."""
    first: float | None = None
    """When the first token came."""
    done: float = 0.0
    gaps: list[float] = field(default_factory=list)
    tokens_in: int = 0
    tokens_out: int = 0
    version: str = ""
    """The version that the server names as the one that answered."""
    is_mixed: bool = False
    """Whether the answer names several versions."""
    tier: str = ""
    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    """With log-probabilities, where the request asks for them."""
    token_ids: list[int] = field(default_factory=list)
    """Where the request asks for them."""
    token_times: list[float] = field(default_factory=list)
    """When each of `token_ids` came. Tokens that come together have the same time."""

    @property
    def ok(self) -> bool:
        """Return whether it was answered in full, with no known fault."""
        return self.status == OK

    @property
    def is_error(self) -> bool:
        """Return whether it counts as an error."""
        return self.status not in (OK, HUNG_UP)

    @property
    def ttft(self) -> float | None:
        """Return the seconds from when it was due to the first token."""
        return None if self.first is None else self.first - self.due

    @property
    def e2e(self) -> float:
        """Return the seconds from when it was due to the last byte."""
        return self.done - self.due

    @property
    def tpot(self) -> float | None:
        """Return the mean seconds for each token after the first."""
        if self.first is None or self.tokens_out < 2:
            return None
        return sum(self.gaps) / (self.tokens_out - 1)
