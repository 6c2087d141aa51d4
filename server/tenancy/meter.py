"""What a request costs: the engine's seam counts its tokens, the data plane settles them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field

from server.tenancy.fair_queue import PromptTicket
from server.tenancy.prompt_queue import PromptQueue
from server.tenancy.timing import Timing

LAST_COUNT_SECONDS = 1.0
"""How long a request that was given up may take to leave the engine, and still be charged."""


@dataclass
class Meter:
    """The tokens of one HTTP request, of all its prompts and choices together."""

    turns: PromptQueue
    tenant: str
    weight: int = 1
    input_tokens: int = 0
    output_tokens: int = 0
    timing: Timing | None = None
    _num_open: int = 0
    _all_ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def tokens(self) -> int:
        """In and out."""
        return self.input_tokens + self.output_tokens

    @asynccontextmanager
    async def turn(self, input_tokens: int) -> AsyncIterator[TokenCounter]:
        """Wait until a prompt may run; what is yielded counts tokens of its answer."""
        self._num_open += 1
        try:
            async with self.turns.turn(self.tenant, self.weight, input_tokens) as ticket:
                self.input_tokens += input_tokens
                yield TokenCounter(self, ticket)
        finally:
            self._num_open -= 1
            if not self._num_open:
                self._all_ended.set()

    async def ended(self) -> None:
        """Wait until no prompt has its turn any more.

        Where the client has gone away vLLM cancels its handler and doesn't wait for it.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_COUNT_SECONDS):
                while self._num_open:
                    self._all_ended.clear()
                    await self._all_ended.wait()


@dataclass
class TokenCounter:
    """The answer to one prompt, with one choice or more."""

    meter: Meter
    ticket: PromptTicket
    _last: dict[int, float] = field(default_factory=dict)
    """When each choice's last tokens came."""

    def add(self, tokens: int, choice: int = 0) -> None:
        """Count tokens of a choice, as the engine gives them."""
        if tokens:
            self.meter.output_tokens += tokens
            self.meter.turns.charge(self.ticket, tokens)
            if timing := self.meter.timing:
                self._last[choice] = timing.tokens(tokens, self._last.get(choice))


current_meter: ContextVar[Meter | None] = ContextVar("meter", default=None)
"""The running request's; None for the server's own probes."""
