"""The slot scheduler: which versions hold the engine's slots, and which ones wait for a slot.

The engine computes at most `max_loras` adapters at a time. If it were handed more, later requests
would overtake earlier ones without bound. So versions share the slots in time:

* A version that holds a slot admits its requests at once, but at most `max_running_per_tenant` of
  each tenant, so that the version is free soon after it was closed.
* A version without a slot waits for a free slot, or for one whose holder is idle, which means that
  it has had no request for `linger_seconds`. So a chat that continues right after an answer keeps
  its slot. The idea is anticipatory scheduling for disks (Iyer and Druschel, SOSP 2001).
* While versions wait, holders whose *quantum* is over are *closed*, longest first: one for each
  waiting version, so that one rare adapter doesn't stop all others; and all of them once a version
  has waited for a quantum, so that one long stream doesn't stop the queue. A closed holder admits
  nothing: its new requests wait like all others. When it is idle, its slot is taken.
* Slots go to the tenant that has the fewest. Among the versions of one tenant, and among tenants
  with equally many, the version whose first request has waited longest comes first, with all the
  requests that wait for it. So a tenant with a hundred adapters can't keep another tenant's one
  adapter from a slot; while no other tenant waits it may have all slots.
* While a tenant waits that holds less than its share of the unpinned slots (`slot_shares.py`),
  holders beyond another tenant's share are closed at once, the oldest first. Once it has waited for
  `preempt_seconds`, `overdue` names that tenant's requests on them, for the caller to end.
* One slot is kept for tenants that hold none: a tenant may not take all unpinned slots for itself
  if another tenant has asked for one within `reserve_seconds`. So a tenant whose streams are
  endless can shut out nobody who used the server lately. A tenant that is alone has all slots.

**Bound**, for a tenant with less than `max_running_per_tenant` requests on each version. Let each
admitted request last at most D seconds (D no less than the linger), let M slots be without a
pinned holder, and let `advance` be called at every change and deadline. A request whose version is
the i-th to wait is admitted within ceil(i / M) * (quantum + D) seconds. For i <= M: after waiting
for a quantum, every unpinned holder is closed, except those whose quantum began meanwhile. These
were ahead in the queue, so they are at most i - 1, each counted once, since their later requests
queue behind. So at least M - (i - 1) holders have admitted nothing since and are idle D seconds
later: enough for those still ahead and for this version. Behind the first M the same begins anew.
With streams of unbounded length no bound exists: the caller gives up by `leave`.

A tenant below its share waits at most D for its first slot while another tenant is above its own,
whose surplus admits nothing, and no longer than `preempt_seconds` for that tenant's own requests.
If the kept slot is free, it doesn't wait.

Among tenants: of what waits at one moment, the i-th version of a tenant with h slots comes after
at most i + h versions of each other tenant.

This module is pure: no tasks and no I/O. `now` (seconds, from a clock that never goes back) is an
argument.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import dataclass, field

from server.residency.slot_shares import surplus


class TooManyPins(ValueError):
    """A pin would leave no slot for other adapters, which would then wait for ever."""


@dataclass(eq=False)
class SlotTicket:
    """One request. It waits until a grant names it, and is then admitted until it leaves."""

    version_id: int
    number: int
    asked_at: float
    tenant: str


@dataclass(frozen=True)
class Grant:
    """Requests that are admitted together. `victim` is the version that loses its slot, if any."""

    version_id: int
    tickets: tuple[SlotTicket, ...]
    victim: int | None = None


@dataclass
class _Quantum:
    """A version's time in a slot."""

    began: float
    tenant: str
    """The tenant whose request began it."""
    leases: set[SlotTicket] = field(default_factory=set)
    num_leases: Counter[str] = field(default_factory=Counter)
    """How many of the leases each tenant has."""
    idle_since: float = 0.0  # only valid while there are no leases


class SlotScheduler:
    """Shares `num_slots` slots among versions, a quantum at a time.

    Call `advance` after each change.
    """

    def __init__(
        self,
        num_slots: int,
        quantum_seconds: float,
        linger_seconds: float,
        max_running_per_tenant: float = math.inf,
        reserve_seconds: float = 0.0,
        preempt_seconds: float = math.inf,
    ) -> None:
        """Start with empty slots.

        `max_running_per_tenant` is how many requests of one tenant a version admits at a time.
        `reserve_seconds` is how long after a tenant's last request a slot is kept for it, and
        `preempt_seconds` how long one below its share waits until another's requests are `overdue`.
        """
        self._num_slots, self._max_running_per_tenant = num_slots, max_running_per_tenant
        self._quantum_seconds = quantum_seconds
        self._linger = linger_seconds
        self._quanta: dict[int, _Quantum] = {}  # in the order in which they began
        self._waiting: dict[int, list[SlotTicket]] = {}
        self._pinned: set[int] = set()
        self._numbers = itertools.count()
        self._reserve_seconds, self._preempt_seconds = reserve_seconds, preempt_seconds
        self._asked_at: dict[str, float] = {}
        """When each tenant last asked. Only times within `reserve_seconds` are kept."""

    def ask(self, version_id: int, now: float, tenant: str = "") -> SlotTicket:
        """Put a request in the queue and return its ticket.

        A later grant of `advance` that names the ticket admits the request.
        """
        ticket = SlotTicket(version_id, next(self._numbers), now, tenant)
        lately = {t: at for t, at in self._asked_at.items() if now - at < self._reserve_seconds}
        self._asked_at = lately | {tenant: now}
        self._waiting.setdefault(version_id, []).append(ticket)
        return ticket

    def leave(self, ticket: SlotTicket, now: float) -> None:
        """End a request, admitted or waiting. Each ticket leaves once (KeyError otherwise)."""
        version_id = ticket.version_id
        quantum = self._quanta.get(version_id)
        if quantum and ticket in quantum.leases:
            quantum.leases.remove(ticket)
            quantum.num_leases[ticket.tenant] -= 1
            quantum.idle_since = now
        elif ticket in self._waiting.get(version_id, ()):
            self._waiting[version_id].remove(ticket)
            if not self._waiting[version_id]:
                del self._waiting[version_id]
        else:
            raise KeyError(ticket)

    def holds(self, version_id: int) -> bool:
        """Return whether a version has a slot."""
        return version_id in self._quanta

    def waits_for_own(self, ticket: SlotTicket) -> bool:
        """Return whether its tenant has as many requests running on its version as it may."""
        quantum = self._quanta.get(ticket.version_id)
        num_leases = quantum.num_leases[ticket.tenant] if quantum else 0
        return num_leases >= self._max_running_per_tenant

    def holders(self) -> list[int]:
        """Return the versions that have a slot."""
        return list(self._quanta)

    def pin(self, version_id: int) -> None:
        """Let a version keep the slot that it has or will get.

        Raises:
            TooManyPins: it would leave no slot for the others.
        """
        if len(self._pinned | {version_id}) >= self._num_slots:
            raise TooManyPins(f"at most {self._num_slots - 1} of {self._num_slots} slots")
        self._pinned.add(version_id)

    def unpin(self, version_id: int) -> None:
        """Let a version lose its slot to others again."""
        self._pinned.discard(version_id)

    def remove(self, version_id: int) -> None:
        """Take slot and pin from a version on which no request runs (ValueError otherwise).

        Requests that wait for the version go on waiting.
        """
        quantum = self._quanta.get(version_id)
        if quantum and quantum.leases:
            raise ValueError(f"{len(quantum.leases)} requests run on {version_id}")
        self._pinned.discard(version_id)
        self._quanta.pop(version_id, None)

    def advance(self, now: float) -> list[Grant]:
        """Admit all requests that can be admitted now; return the grants in their order."""
        grants = []
        while grant := self._next_grant(now):
            grants.append(grant)
        return grants

    def overdue(self, now: float) -> list[SlotTicket]:
        """Return requests that keep slots from a tenant which has waited too long for its share."""
        seconds, lacking = self._preempt_seconds, self._without_slot().items()
        waiting = [each for each, tickets in lacking if tickets[0].asked_at + seconds <= now]
        quanta = [self._quanta[each] for each in self._surplus(waiting)] if waiting else []
        return [t for quantum in quanta for t in quantum.leases if t.tenant == quantum.tenant]

    def next_deadline(self, now: float = -math.inf) -> float | None:
        """Return when to call `advance` next if nothing changes; it is later than `now`.

        At that time a holder has lingered long enough, a slot is no longer kept, or requests are
        `overdue`. `now` must be that of the last `advance`.
        """
        waiting = self._without_slot().values()
        if not waiting:
            return None
        deadlines = [quantum.idle_since + self._linger for _, quantum in self._idle()]
        deadlines += [tickets[0].asked_at + self._preempt_seconds for tickets in waiting]
        if self._reserve_seconds:
            deadlines += [at + self._reserve_seconds for at in self._asked_at.values()]
        return min((each for each in deadlines if now < each < math.inf), default=None)

    def _without_slot(self) -> dict[int, list[SlotTicket]]:
        return {each: t for each, t in self._waiting.items() if not self.holds(each)}

    def _next_grant(self, now: float) -> Grant | None:
        queue = self._queue()
        closed = self._closed(queue, now)
        for version_id in queue:
            if self.holds(version_id) and version_id not in closed:
                return self._admit(version_id)
        if queue and self.holds(queue[0]):
            return self._begin_quantum(queue[0], now)
        for version_id in queue:
            if self.holds(version_id):
                continue
            may_take_more = self._may_take_more(self._waiting[version_id][0].tenant, now)
            if may_take_more and len(self._quanta) < self._num_slots:
                return self._begin_quantum(version_id, now)
            victim = self._victim(closed, now, None if may_take_more else version_id)
            if victim is not None:
                return self._begin_quantum(version_id, now, victim)
            if may_take_more:
                return None
        return None

    def _may_take_more(self, tenant: str, now: float) -> bool:
        """Return True if a tenant may hold one more slot, False if it must leave it to others."""
        num_open = self._num_slots - len(self._pinned & self._quanta.keys())
        if self._num_held(tenant) + 1 < num_open or num_open == 1:
            return True
        return not any(
            other != tenant and now - at < self._reserve_seconds
            for other, at in self._asked_at.items()
        )

    def _num_held(self, tenant: str) -> int:
        return sum(
            q.tenant == tenant for each, q in self._quanta.items() if each not in self._pinned
        )

    def _queue(self) -> list[int]:
        """Return the versions with requests that could be admitted, in the order of the queue."""
        wanted = {version_id for version_id in self._waiting if self._admissible(version_id)}
        num_slots = Counter(
            t.tenant for version_id, t in self._quanta.items() if version_id not in wanted
        )
        places: dict[int, tuple[int, float, int]] = {}
        for version_id in sorted(wanted, key=self._in_line_since):
            tenant = self._waiting[version_id][0].tenant
            places[version_id] = num_slots[tenant], *self._in_line_since(version_id)
            num_slots[tenant] += 1
        return sorted(places, key=places.__getitem__)

    def _in_line_since(self, version_id: int) -> tuple[float, int]:
        """Return the sort key of the slot queue.

        It is the arrival of the version's first waiting request or, if the version holds a slot,
        the end of its quantum, whichever is later; ties are broken by the ticket's number.
        """
        first, quantum = self._waiting[version_id][0], self._quanta.get(version_id)
        quantum_ended = quantum.began + self._quantum_seconds if quantum else first.asked_at
        return max(first.asked_at, quantum_ended), first.number

    def _closed(self, queue: list[int], now: float) -> set[int]:
        """Return the holders that admit nothing, as others wait and their time is over."""
        waiting = [version_id for version_id in queue if not self.holds(version_id)]
        if not waiting:
            return set()
        over = [
            version_id
            for version_id, quantum in self._quanta.items()
            if version_id not in self._pinned and quantum.began + self._quantum_seconds <= now
        ]
        longest = min(self._waiting[version_id][0].asked_at for version_id in waiting)
        long_wait = longest + self._quantum_seconds <= now
        return set(over if long_wait else over[: len(waiting)]) | self._surplus(waiting)

    def _surplus(self, waiting: list[int]) -> set[int]:
        """Return holders beyond their tenant's share, while another tenant waits for its own."""
        wanted = Counter(self._waiting[version_id][0].tenant for version_id in waiting)
        held = [(q.tenant, each) for each, q in self._quanta.items() if each not in self._pinned]
        num_open = self._num_slots - len(self._pinned & self._quanta.keys())
        return set(surplus(held, wanted, num_open))

    def _victim(self, closed: set[int], now: float, same_tenant: int | None = None) -> int | None:
        """Return the holder that loses its slot: of those that may, the one that is idle longest.

        `same_tenant` is a version that may replace only a version of its own tenant.
        """
        ready = {
            version_id: quantum.idle_since
            for version_id, quantum in self._idle()
            if version_id in closed or quantum.idle_since + self._linger <= now
        }
        if same_tenant is not None:
            tenant = self._waiting[same_tenant][0].tenant
            ready = {each: at for each, at in ready.items() if self._quanta[each].tenant == tenant}
        return min(ready, key=ready.__getitem__, default=None)

    def _idle(self) -> list[tuple[int, _Quantum]]:
        return [
            (version_id, quantum)
            for version_id, quantum in self._quanta.items()
            if not quantum.leases and version_id not in self._pinned
        ]

    def _begin_quantum(self, version_id: int, now: float, victim: int | None = None) -> Grant:
        """Give a version a slot or, if it has one and is first in the queue, its next quantum."""
        if victim is not None:
            del self._quanta[victim]
        quantum = self._quanta.pop(version_id, _Quantum(now, ""))
        quantum.began, quantum.tenant = now, self._waiting[version_id][0].tenant
        self._quanta[version_id] = quantum
        return self._admit(version_id, victim)

    def _admissible(self, version_id: int) -> bool:
        """Return whether a waiting request for this version could be admitted now."""
        return not all(map(self.waits_for_own, self._waiting[version_id]))

    def _admit(self, version_id: int, victim: int | None = None) -> Grant:
        quantum = self._quanta[version_id]
        admitted: list[SlotTicket] = []
        left: list[SlotTicket] = []
        for ticket in self._waiting.pop(version_id):
            has_room = quantum.num_leases[ticket.tenant] < self._max_running_per_tenant
            (admitted if has_room else left).append(ticket)
            quantum.num_leases[ticket.tenant] += has_room
        quantum.leases.update(admitted)
        if left:
            self._waiting[version_id] = left
        return Grant(version_id, tuple(admitted), victim)
