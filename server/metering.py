"""What a request costs: the engine's seam counts its tokens, the data plane settles them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from server.fair_queue import Ticket
from server.timing import Timing
from server.turns import Turns


@dataclass
class Meter:
    """The tokens of one HTTP request, of all its prompts and choices together."""

    turns: Turns
    tenant: str
    weight: int = 1
    input_tokens: int = 0
    output_tokens: int = 0
    timing: Timing | None = None

    @property
    def tokens(self) -> int:
        """In and out."""
        return self.input_tokens + self.output_tokens

    @asynccontextmanager
    async def turn(self, input_tokens: int) -> AsyncIterator[Answer]:
        """Wait until a prompt may run; what is yielded counts tokens of its answer."""
        async with self.turns.turn(self.tenant, self.weight, input_tokens) as ticket:
            self.input_tokens += input_tokens
            yield Answer(self, ticket)


@dataclass
class Answer:
    """The answer to one prompt, with one choice or more."""

    meter: Meter
    ticket: Ticket
    _last: dict[int, float] = field(default_factory=dict)
    """When each choice's last tokens came."""

    def add(self, tokens: int, choice: int = 0, since_first: float | None = None) -> None:
        """Count tokens of a choice as they come; `since_first` as in `Timing.tokens`."""
        if tokens:
            self.meter.output_tokens += tokens
            self.meter.turns.charge(self.ticket, tokens)
            if timing := self.meter.timing:
                before = self._last.get(choice)
                self._last[choice] = timing.tokens(tokens, before, since_first)


METER: ContextVar[Meter | None] = ContextVar("meter", default=None)
"""The running request's; None for the server's own probes."""
