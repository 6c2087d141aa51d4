"""The prompt queue: prompts wait until their tenant is next (`fair_queue` decides who that is)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from server import metrics
from server.tenancy.fair_queue import FairQueue, PromptTicket


class PromptQueue:
    """Lets `max_running` prompts run in the engine at a time; the others wait for their turn."""

    def __init__(self, max_running: int, prefill_tokens: int) -> None:
        """`prefill_tokens`: as in `FairQueue`."""
        self._queue = FairQueue(max_running, prefill_tokens)
        self._waiting: dict[PromptTicket, asyncio.Future[None]] = {}
        self._open: set[PromptTicket] = set()

    @asynccontextmanager
    async def turn(
        self,
        tenant: str,
        weight: int,
        input_tokens: int,
        admitted: asyncio.Future[None] | None = None,
    ) -> AsyncIterator[PromptTicket]:
        """Wait for a prompt's turn, and keep it until `leave` or the end of the context.

        `admitted` is resolved when the turn comes. An exception that is set on it ends the wait.
        """
        ticket, started = self._queue.ask(tenant, weight, input_tokens), time.monotonic()
        self._open.add(ticket)
        self._waiting[ticket] = admitted or asyncio.get_running_loop().create_future()
        try:
            with metrics.WAITING.labels("share").track_inprogress():
                waiting = self._waiting[ticket]
                self._advance()
                await waiting
            label = metrics.tenant_label(tenant)
            metrics.QUEUE_SECONDS.labels(label, "share").observe(time.monotonic() - started)
            yield ticket
        finally:
            self.leave(ticket)

    def leave(self, ticket: PromptTicket) -> None:
        """Give a turn back, or leave the queue; nothing happens the second time."""
        if ticket in self._open:
            self._open.discard(ticket)
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
            admitted = self._waiting.pop(ticket)
            if not admitted.done():
                admitted.set_result(None)
