"""Fair sharing by tokens: which tenant's prompt the engine computes next.

The Virtual Token Counter (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024):
each tenant has a counter of the tokens that it was served, divided by its weight. Of the tenants
that have prompts waiting, the one with the lowest counter is next. When a tenant begins to wait,
its counter is raised to near the lowest of those that wait, so that nobody saves up for later.
Therefore, of two tenants that always have prompts waiting, neither gets more than the other, by
their weights, except for a constant: about the cost of two full engines. While there is room,
nothing is held back.

The engine's room is counted in sequences. A prompt with several choices takes a sequence for each,
and its tokens are paid once.

Three rules go beyond the paper. The first two let a tenant run beyond the room, so that it does not
wait for another tenant's answers to end:

* it has fewer sequences running than its share of the room, and it would be next if what it runs
  now had cost nothing. A tenant that has its share running is passed by, even if its counter is
  lower by up to the cost of a full engine, as a newcomer's is; or
* its counter is below the next tenant's by more than half the cost of a full engine (raising the
  counter of a newly waiting tenant leaves it at most one full engine behind).

Under these two rules up to `max_running` more sequences may run, under the second up to half of it:
long answers of a tenant that has its share must not fill what is beyond the room, too. So a
tenant's first token comes soon under another's flood, and the flood pays for it with its own time.
A prompt whose choices do not fit yet keeps its turn under the first rule: none behind it goes
beyond the room before it.

The third rule: the prompts of one tenant begin a few at a time (`prefill_tokens`). Otherwise a
flood of long prompts would fill a step of the engine, and every tenant's next token would wait.

Pure: no tasks, no clock.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

INPUT_COST, OUTPUT_COST = 1, 2
"""The cost of one token, as in the paper. An answer's tokens cost more than a prompt's because they
are computed one by one."""
ALONE = 8
"""While only one tenant is active, its prefill budget is multiplied by this, because no other
tenant's next token can be delayed."""
NUM_REMEMBERED = 32
"""The mean cost of a sequence is taken over about this many prompts."""


@dataclass(eq=False)
class PromptTicket:
    """One prompt. It waits until `advance` returns it, and then runs until it leaves."""

    tenant: str
    weight: float
    input_tokens: int
    choices: int = 1
    """How many answers it asks for. Each is a sequence in the engine."""
    cost: float = 0.0
    """What it has added to its tenant's counter."""
    prefilled: bool = False
    """Whether the first token of its answer has arrived."""


@dataclass
class _Account:
    counter: float = 0.0
    weight: float = 1
    running: int = 0
    """Sequences."""
    cost_of_running: float = 0.0
    """The part of the counter that comes from prompts that still run."""
    prefilling: int = 0
    """The tokens of its running prompts whose answers have not begun."""
    waiting: deque[PromptTicket] = field(default_factory=deque)


class FairQueue:
    """Lets `max_running` sequences run at a time. Call `advance` after `ask`, `charge`, `leave`.

    Several prompts of a tenant may be without an answer only if together they have no more than
    `prefill_tokens` tokens, or `ALONE` times as many while only one tenant is served.
    """

    def __init__(self, max_running: int, prefill_tokens: int) -> None:
        self._max_running, self._prefill_tokens = max_running, prefill_tokens
        self._accounts: dict[str, _Account] = {}
        self._running: set[PromptTicket] = set()
        self._num_running = 0
        """Sequences of all tenants."""
        self._level = 0.0
        """The counter of the tenant that was admitted last."""
        self._mean_cost = math.inf
        """The mean cost of a sequence over recently ended prompts. Infinite until one has ended."""

    def ask(self, tenant: str, weight: float, input_tokens: int, choices: int = 1) -> PromptTicket:
        """Put a prompt in the queue.

        `choices` may be at most `max_running`, or the prompt would never fit (ValueError).
        """
        if choices > self._max_running:
            raise ValueError(f"{choices} choices in a room of {self._max_running}")
        account = self._accounts.setdefault(tenant, _Account())
        if not account.waiting:
            waiting = (other.counter for other in self._accounts.values() if other.waiting)
            lowest = min(waiting, default=self._level)
            account.counter = max(account.counter, lowest - self._full_engine / weight)
        account.weight = weight
        ticket = PromptTicket(tenant, weight, input_tokens, choices)
        account.waiting.append(ticket)
        return ticket

    def leave(self, ticket: PromptTicket) -> None:
        """End a prompt, running or waiting. Each ticket leaves once (ValueError otherwise)."""
        account = self._accounts[ticket.tenant]
        if ticket in self._running:
            self._running.remove(ticket)
            self._num_running -= ticket.choices
            account.running -= ticket.choices
            self._remember(ticket.cost * ticket.weight / ticket.choices)
            self._end_prefill(ticket)
            # The sum is computed again, so that rounding errors do not add up.
            account.cost_of_running = sum(
                t.cost for t in self._running if t.tenant == ticket.tenant
            )
        else:
            account.waiting.remove(ticket)
        self._forget_idle()

    def charge(self, ticket: PromptTicket, output_tokens: int) -> None:
        """Count tokens of a running prompt's answers, as they come."""
        self._end_prefill(ticket)
        self._add(ticket, OUTPUT_COST * output_tokens / ticket.weight)

    def advance(self) -> list[PromptTicket]:
        """Admit the prompts that there is room for, in the order of their tenants' counters."""
        admitted = []
        while ticket := self._next():
            account = self._accounts[ticket.tenant]
            account.waiting.popleft()
            account.running += ticket.choices
            self._num_running += ticket.choices
            account.prefilling += ticket.input_tokens
            self._running.add(ticket)
            self._level = account.counter
            self._add(ticket, INPUT_COST * ticket.input_tokens / ticket.weight)
            admitted.append(ticket)
        return admitted

    def num_waiting(self) -> tuple[int, int]:
        """Return how many prompts wait for room in the engine, and how many for their own tenant's.

        If there is room for a tenant's next prompt, then only its tenant's other prompts, which
        have no answer yet, can be what it waits for.
        """
        for_engine = for_own = 0
        for account in self._accounts.values():
            num_waiting = len(account.waiting)
            if num_waiting and self._num_running + account.waiting[0].choices <= self._max_running:
                for_own += num_waiting
            else:
                for_engine += num_waiting
        return for_engine, for_own

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
        waiting = sorted(
            (account for account in self._accounts.values() if account.waiting),
            key=lambda account: (account.counter, account.running),
        )
        active = sum(a.weight for a in self._accounts.values() if a.running or a.waiting)
        may_go_beyond = True
        for account in filter(self._may_prefill, waiting):
            ticket = account.waiting[0]
            num_running = self._num_running + ticket.choices
            if num_running <= self._max_running:
                return ticket
            if may_go_beyond and self._need_not_wait(account, waiting, active):
                if num_running <= self._most_beyond(account, active):
                    return ticket
                may_go_beyond = account.running >= self._share(account, active)
        return None

    def _may_prefill(self, account: _Account) -> bool:
        together = account.prefilling + account.waiting[0].input_tokens
        factor = ALONE if len(self._accounts) == 1 else 1
        return not account.prefilling or together <= factor * self._prefill_tokens

    def _need_not_wait(self, account: _Account, waiting: list[_Account], active: float) -> bool:
        """Return whether a tenant may run a prompt although the engine is full.

        `waiting` is sorted by counters. `active` is the weight of all tenants that run or wait.
        """
        least = waiting[0].counter
        if account.running < self._share(account, active):
            below = next(a for a in waiting if a.running < self._share(a, active))
            allowed = min(below.counter, least + self._full_engine / account.weight)
            return account.counter - account.cost_of_running <= allowed
        second = waiting[1].counter if len(waiting) > 1 else -math.inf
        return account is waiting[0] and least + self._full_engine / account.weight / 2 < second

    def _share(self, account: _Account, active: float) -> float:
        """Return how many sequences of the room are a tenant's."""
        return self._max_running * account.weight / active

    def _most_beyond(self, account: _Account, active: float) -> float:
        """Return how many sequences may run once a tenant's next prompt runs beyond the room."""
        return self._max_running * (2 if account.running < self._share(account, active) else 1.5)

    @property
    def _full_engine(self) -> float:
        """Return the cost of `max_running` sequences."""
        return self._max_running * self._mean_cost

    def _forget_idle(self) -> None:
        """Forget all counters if nothing runs or waits. There is nothing to compare them with."""
        if not self._running and not any(a.waiting for a in self._accounts.values()):
            self._accounts.clear()
            self._level = 0.0
