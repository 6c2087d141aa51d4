"""What a request costs: the engine's seam counts its tokens, the data plane settles them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from server.turns import Turns


@dataclass
class Meter:
    """The tokens of one HTTP request, of all its prompts and choices together."""

    turns: Turns
    tenant: str
    weight: int = 1
    input_tokens: int = 0
    output_tokens: int = 0

    @property
    def tokens(self) -> int:
        """In and out."""
        return self.input_tokens + self.output_tokens

    @asynccontextmanager
    async def turn(self, input_tokens: int) -> AsyncIterator[Callable[[int], None]]:
        """Wait until a prompt may run; what is yielded counts tokens of its answer."""
        async with self.turns.turn(self.tenant, self.weight, input_tokens) as ticket:
            self.input_tokens += input_tokens

            def answered(output_tokens: int) -> None:
                self.output_tokens += output_tokens
                self.turns.charge(ticket, output_tokens)

            yield answered


METER: ContextVar[Meter | None] = ContextVar("meter", default=None)
"""The running request's; None for the server's own probes."""
