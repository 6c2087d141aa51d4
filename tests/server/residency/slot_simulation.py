"""Requests through `SlotScheduler` in simulated time: who waited how long, what was loaded."""

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from server.residency.slot_scheduler import SlotScheduler, SlotTicket


@dataclass
class Request:
    """One request; `position` is its key's place in the queue when it asked, from 1."""

    version_id: int
    duration: float
    asked_at: float
    position: int
    waited: float | None = None


class Simulation:
    """A clock, a queue of events, and slots whose deadlines are kept to the moment."""

    def __init__(self, slots: SlotScheduler) -> None:
        self.slots = slots
        self.now = 0.0
        self.requests: list[Request] = []
        self.num_loads = 0
        self.preempted: set[SlotTicket] = set()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._waiting: dict[SlotTicket, Request] = {}
        self._ended: dict[SlotTicket, Callable[[], None]] = {}
        self._resident: set[int] = set()

    def at(self, time: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time, next(self._numbers), event))

    def ask(
        self,
        version_id: int,
        duration: float,
        ended: Callable[[], None] = lambda: None,
        tenant: str = "",
    ) -> None:
        """Ask now; `ended` is called when the answer is complete."""
        ticket = self.slots.ask(version_id, self.now, tenant)
        keys = list(dict.fromkeys([other.version_id for other in self._waiting] + [version_id]))
        request = Request(version_id, duration, self.now, keys.index(version_id) + 1)
        self.requests.append(request)
        self._waiting[ticket] = request
        self._ended[ticket] = ended

    def run(self, until: float = float("inf")) -> None:
        while self._events and self._events[0][0] <= until:
            self.now, _, event = heapq.heappop(self._events)
            event()
            self._advance()

    def _advance(self) -> None:
        for grant in self.slots.advance(self.now):
            self.num_loads += grant.version_id not in self._resident
            self._resident = self._resident - {grant.victim} | {grant.version_id}
            for ticket in grant.tickets:
                request = self._waiting.pop(ticket)
                request.waited = self.now - request.asked_at
                self.at(self.now + request.duration, partial(self._end, ticket))
        for ticket in self.slots.overdue(self.now):
            self.preempted.add(ticket)
            self.at(self.now, partial(self._end, ticket))
        deadline = self.slots.next_deadline(self.now)
        if deadline is not None:
            assert deadline > self.now
            self.at(deadline, lambda: None)

    def _end(self, ticket: SlotTicket) -> None:
        if ended := self._ended.pop(ticket, None):  # else it was ended before
            self.slots.leave(ticket, self.now)
            ended()

    def closed_loop(self, version_id: int, duration: Callable[[], float], gap: float) -> None:
        """A client that asks again `gap` seconds after each answer, for ever."""

        def again() -> None:
            self.at(self.now + gap, lambda: self.ask(version_id, duration(), again))

        again()
