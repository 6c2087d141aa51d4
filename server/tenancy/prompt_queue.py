"""The prompt queue: `fair_queue` decides which prompt is next, and here requests wait for it."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from server import metrics
from server.errors import OverQuota
from server.tenancy.fair_queue import FairQueue, PromptTicket
from server.tenancy.service_tiers import DEFAULT, ServiceTier

MAX_RETRY_AFTER_SECONDS = 60
NUM_REMEMBERED = 32
"""The mean time between two admissions is taken over about this many."""


@dataclass
class Places:
    """The places that one request takes among the answers that its tenant may have waiting."""

    choices: int


class PromptQueue:
    """Lets `max_running` sequences run in the engine at a time. Further prompts wait."""

    def __init__(self, max_running: int, prefill_tokens: int, max_waiting: int = 1024) -> None:
        """`max_waiting` bounds the waiting choices of one tenant. The rest is as in `FairQueue`."""
        self.max_running, self._max_waiting = max_running, max_waiting
        self._queue = FairQueue(max_running, prefill_tokens)
        self._admissions: dict[PromptTicket, asyncio.Future[None]] = {}
        self._open: set[PromptTicket] = set()
        self._num_waiting: Counter[str] = Counter()
        self._admitted_at, self._mean_seconds = time.monotonic(), 0.0

    @contextmanager
    def places(self, tenant: str, choices: int) -> Iterator[Places]:
        """Take places for all prompts of a request. This happens before it asks for a slot.

        Each prompt gives its places back when the engine begins with it.

        Raises:
            OverQuota: the tenant has as many waiting as it may.
        """
        num_waiting = self._num_waiting[tenant]
        if num_waiting and num_waiting + choices > self._max_waiting:
            wait_seconds = math.ceil(num_waiting * self._mean_seconds)
            raise OverQuota(
                f"the tenant {tenant} has {num_waiting} answers waiting for the engine, and may "
                f"have {self._max_waiting}: wait for some",
                retry_after_seconds=min(wait_seconds, MAX_RETRY_AFTER_SECONDS),
            )
        places = Places(choices)
        self._num_waiting[tenant] += choices
        try:
            yield places
        finally:
            self._give_back(tenant, places, places.choices)

    def _give_back(self, tenant: str, places: Places, choices: int) -> None:
        choices = min(choices, places.choices)
        places.choices -= choices
        self._num_waiting[tenant] -= choices
        if not self._num_waiting[tenant]:
            del self._num_waiting[tenant]

    @asynccontextmanager
    async def admission(
        self,
        tenant: str,
        weight: float,
        input_tokens: int,
        choices: int = 1,
        places: Places | None = None,
        admitted: asyncio.Future[None] | None = None,
        service_tier: ServiceTier = DEFAULT,
    ) -> AsyncIterator[PromptTicket]:
        """Wait until a prompt may run. It counts as running until `leave` or the context's end.

        `places` are those of its request, of which the prompt gives back its own. `admitted` is
        resolved when the prompt may run. An exception that is set on it ends the wait.
        """
        account, weight = service_tier.account_of(tenant), weight * service_tier.weight_factor
        ticket = self._queue.ask(account, weight, input_tokens, choices)
        started = time.monotonic()
        self._open.add(ticket)
        self._admissions[ticket] = admitted or asyncio.get_running_loop().create_future()
        try:
            waiting = self._admissions[ticket]
            self._advance()
            await waiting
            if places is not None:
                self._give_back(tenant, places, choices)
            label = metrics.tenant_label(tenant)
            metrics.QUEUE_SECONDS.labels(label, "prompt").observe(time.monotonic() - started)
            yield ticket
        finally:
            self.leave(ticket)

    def num_waiting(self) -> tuple[int, int]:
        """Return how many prompts wait for the engine, and for their own tenant's other prompts."""
        return self._queue.num_waiting()

    def leave(self, ticket: PromptTicket) -> None:
        """End a running prompt, or take a waiting one out of the queue. May be called twice."""
        if ticket in self._open:
            self._open.discard(ticket)
            self._admissions.pop(ticket, None)
            self._queue.leave(ticket)
            self._advance()

    def charge(self, ticket: PromptTicket, output_tokens: int) -> None:
        """Count tokens of a running prompt's answers as they arrive."""
        is_first = not ticket.prefilled
        self._queue.charge(ticket, output_tokens)
        if is_first:
            self._advance()

    def _advance(self) -> None:
        for ticket in self._queue.advance():
            admitted = self._admissions.pop(ticket)
            if not admitted.done():
                admitted.set_result(None)
            now = time.monotonic()
            seconds = (now - self._admitted_at) / ticket.choices
            self._mean_seconds += (seconds - self._mean_seconds) / NUM_REMEMBERED
            self._admitted_at = now
