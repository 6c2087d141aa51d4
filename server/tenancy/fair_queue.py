"""Fair sharing by tokens: whose prompt the engine computes next.

The Virtual Token Counter (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024):
each tenant has a counter of the tokens it was served, divided by its weight; of the tenants that
wait, the one with the lowest is next. One that begins to wait has its counter lifted to near the
lowest of those that wait, so that nobody saves up for later. So of two tenants that always have
something waiting, neither gets more than the other, by their weights, but for a constant: about
what two engines full of requests cost. Nothing is held back while there is room.

Beyond the paper: a tenant doesn't wait for one of the others' answers to end if it has less than
its share of the room running, and would be next if what runs had cost it nothing; or if it was
served so much less lately that half an engine full wouldn't make up for it (the lifting leaves it
up to a whole one for that). As many again as there is room for may run so. Its first token comes
soon under a flood of another's, and the flood pays with the time of its own. And prompts of one
tenant begin a few at a time (`prefill_tokens`): else a flood of long ones, or one whose answers end
together, fills a step of the engine with prompts, and everybody's next token waits for all of them.

Pure: no tasks, no clock.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

INPUT_COST, OUTPUT_COST = 1, 2
"""Of a token, as in the paper: an answer's is computed alone, a prompt's with the others."""
ALONE = 8
"""A step with that many times the prompts costs nobody else, until somebody comes."""
NUM_REMEMBERED = 32
"""Prompts over which the mean cost of one is taken, roughly."""


@dataclass(eq=False)
class PromptTicket:
    """One prompt's place: waiting until `advance` names it, then running, until it leaves."""

    tenant: str
    weight: int
    input_tokens: int
    cost: float = 0.0
    """What it has added to its tenant's counter."""
    prefilled: bool = False
    """Whether its answer has begun."""


@dataclass
class _Account:
    counter: float = 0.0
    weight: int = 1
    running: int = 0
    cost_of_running: float = 0.0
    """The part of the counter that is of prompts that run."""
    prefilling: int = 0
    """Tokens of its prompts that run and have no answer yet."""
    waiting: deque[PromptTicket] = field(default_factory=deque)


class FairQueue:
    """Lets `max_running` prompts run at a time. After `ask`, `charge` and `leave` call `advance`.

    More than one prompt of a tenant may be without an answer only if together they have no more
    than `prefill_tokens`; `ALONE` times as many while only one tenant is served.
    """

    def __init__(self, max_running: int, prefill_tokens: int) -> None:
        self._max_running, self._prefill_tokens = max_running, prefill_tokens
        self._accounts: dict[str, _Account] = {}
        self._running: set[PromptTicket] = set()
        self._level = 0.0
        """The counter of the tenant that was admitted last."""
        self._mean_cost = math.inf
        """Of the prompts that ended lately; not known before one has."""

    def ask(self, tenant: str, weight: int, input_tokens: int) -> PromptTicket:
        """Put a prompt in the queue."""
        account = self._accounts.setdefault(tenant, _Account())
        if not account.waiting:
            waiting = (other.counter for other in self._accounts.values() if other.waiting)
            lowest = min(waiting, default=self._level)
            account.counter = max(account.counter, lowest - self._full_engine / weight)
        account.weight = weight
        ticket = PromptTicket(tenant, weight, input_tokens)
        account.waiting.append(ticket)
        return ticket

    def leave(self, ticket: PromptTicket) -> None:
        """End a prompt, running or waiting. Each ticket leaves once (ValueError otherwise)."""
        account = self._accounts[ticket.tenant]
        if ticket in self._running:
            self._running.remove(ticket)
            account.running -= 1
            self._remember(ticket.cost * ticket.weight)
            self._end_prefill(ticket)
            # Added up again, so that no rounding error stays.
            account.cost_of_running = sum(
                t.cost for t in self._running if t.tenant == ticket.tenant
            )
        else:
            account.waiting.remove(ticket)
        self._forget_idle()

    def charge(self, ticket: PromptTicket, output_tokens: int) -> None:
        """Count tokens of a running prompt's answer, as they come."""
        self._end_prefill(ticket)
        self._add(ticket, OUTPUT_COST * output_tokens / ticket.weight)

    def advance(self) -> list[PromptTicket]:
        """Admit what there is room for, in turn."""
        admitted = []
        while ticket := self._next():
            account = self._accounts[ticket.tenant]
            account.waiting.popleft()
            account.running += 1
            account.prefilling += ticket.input_tokens
            self._running.add(ticket)
            self._level = account.counter
            self._add(ticket, INPUT_COST * ticket.input_tokens / ticket.weight)
            admitted.append(ticket)
        return admitted

    def _remember(self, cost: float) -> None:
        before = cost if math.isinf(self._mean_cost) else self._mean_cost
        self._mean_cost = before + (cost - before) / NUM_REMEMBERED

    def _end_prefill(self, ticket: PromptTicket) -> None:
        if not ticket.prefilled:
            ticket.prefilled = True
            self._accounts[ticket.tenant].prefilling -= ticket.input_tokens

    def _add(self, ticket: PromptTicket, cost: float) -> None:
        account = self._accounts[ticket.tenant]
        ticket.cost += cost
        account.counter += cost
        account.cost_of_running += cost

    def _next(self) -> PromptTicket | None:
        if len(self._running) >= 2 * self._max_running:
            return None
        waiting = sorted(
            (account for account in self._accounts.values() if account.waiting),
            key=lambda account: (account.counter, account.running),
        )
        may: Iterator[_Account] = filter(self._may_prefill, waiting)
        if waiting and len(self._running) >= self._max_running:
            may = self._who_need_not_wait(waiting, may)
        account = next(may, None)
        return account.waiting[0] if account else None

    def _may_prefill(self, account: _Account) -> bool:
        together = account.prefilling + account.waiting[0].input_tokens
        factor = ALONE if len(self._accounts) == 1 else 1
        return not account.prefilling or together <= factor * self._prefill_tokens

    def _who_need_not_wait(
        self, waiting: list[_Account], may: Iterator[_Account]
    ) -> Iterator[_Account]:
        """Of some that wait, who goes beyond the room; `waiting` has all, by their counters."""
        active = sum(a.weight for a in self._accounts.values() if a.running or a.waiting)
        first, least = waiting[0], waiting[0].counter
        second = waiting[1].counter if len(waiting) > 1 else -math.inf
        for account in may:
            share = self._max_running * account.weight / active
            if account.running < share:
                if account.counter - account.cost_of_running <= least:
                    yield account
            elif account is first and least + self._full_engine / account.weight / 2 < second:
                yield account

    @property
    def _full_engine(self) -> float:
        """What as many prompts as there is room for cost."""
        return self._max_running * self._mean_cost

    def _forget_idle(self) -> None:
        """Forget all counters when nobody runs or waits: there is nothing to compare them with."""
        if not self._running and not any(a.waiting for a in self._accounts.values()):
            self._accounts.clear()
            self._level = 0.0
