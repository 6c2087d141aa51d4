"""Turns in the engine, shared fairly among tenants: `fair_queue` carried out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from server import metrics
from server.tenancy.fair_queue import FairQueue, PromptTicket


class PromptQueue:
    """Lets `max_running` prompts run in the engine at a time; the others wait their turn."""

    def __init__(self, max_running: int, prefill_tokens: int) -> None:
        """`prefill_tokens`: as in `FairQueue`."""
        self._queue = FairQueue(max_running, prefill_tokens)
        self._waiting: dict[PromptTicket, asyncio.Event] = {}

    @asynccontextmanager
    async def turn(
        self, tenant: str, weight: int, input_tokens: int
    ) -> AsyncIterator[PromptTicket]:
        """Wait for a prompt's turn, and keep it while the context is open."""
        ticket, started = self._queue.ask(tenant, weight, input_tokens), time.monotonic()
        self._waiting[ticket] = asyncio.Event()
        try:
            self._advance()
            if (admitted := self._waiting.get(ticket)) is not None:
                await admitted.wait()
            label = metrics.tenant_label(tenant)
            metrics.QUEUE_SECONDS.labels(label, "share").observe(time.monotonic() - started)
            yield ticket
        finally:
            self._waiting.pop(ticket, None)
            self._queue.leave(ticket)
            self._advance()

    def charge(self, ticket: PromptTicket, output_tokens: int) -> None:
        """Count tokens of a running prompt's answer, as they come."""
        is_first = not ticket.prefilled
        self._queue.charge(ticket, output_tokens)
        if is_first:
            self._advance()

    def _advance(self) -> None:
        for ticket in self._queue.advance():
            self._waiting.pop(ticket).set()
