"""Slot-aware admission: which versions hold the engine's slots, who waits, who makes room.

The engine computes at most `max_loras` adapters at a time. Handed more, it lets later requests
overtake earlier ones without bound. Here keys (engine ids of versions) take turns instead:

* A key that holds a slot admits its requests at once, of one tenant's `room` at a time: a flood
  that waits for its turns in the engine has left soon after its key is closed.
* A key that holds none waits for a free slot, or for one whose holder is idle: without requests
  for `linger_seconds`. A chat that asks again right after an answer keeps its slot that way; the
  idea is anticipatory scheduling (Iyer and Druschel, SOSP 2001), made for disks.
* While keys wait, holders *close* that have had their slot for `quantum_seconds`, longest first:
  one for each waiting key, so that one rare adapter doesn't stop all others; and every such
  holder once a key has waited for a quantum, so that one long stream doesn't stop the queue.
  Requests of a closed holder wait in turn like everyone's; as it falls idle, its slot is taken.
  A holder that is closed no more admits what waits for it.
* Slots go to the tenant that has the fewest; of its keys, and among such tenants, to the
  one whose request has waited longest, with everything that waits for it. So one tenant's hundred
  adapters don't stand between another's one and a slot; while nobody else waits it has them all.

**Bound**, for one tenant with less than `room`. Let each admitted request last at most D seconds (D
no less than the linger), M slots be without a pinned holder, `advance` be called at every change
and deadline. A request whose key is the i-th to wait is admitted within ceil(i / M) * (quantum + D)
seconds. For i <= M: after a quantum of waiting every unpinned holder is closed but those whose turn
began meanwhile. These were ahead in the queue, i - 1 at most, each once, since later requests of
theirs queue behind. So M - (i - 1) or more holders have admitted nothing since, and are idle D
seconds later: enough for those still ahead and for this key. Behind the first M the same begins
anew. With streams of unbounded length no bound exists: the caller gives up by `leave`.

Among tenants: of what waits at one moment, the i-th key of a tenant with h slots comes after
at most i + h keys of each other.

Pure: no tasks, no I/O, and `now` (seconds, of a clock that never goes back) is an argument.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import dataclass, field


class TooManyPins(ValueError):
    """One slot must stay without a pin, or the other adapters would wait for ever."""


@dataclass(eq=False)
class Ticket:
    """One request's place: waiting until a grant names it, then admitted, until it leaves."""

    key: int
    number: int
    asked_at: float
    tenant: str


@dataclass(frozen=True)
class Grant:
    """Requests admitted together; `victim` is the key whose slot theirs takes over, if any."""

    key: int
    tickets: tuple[Ticket, ...]
    victim: int | None = None


@dataclass
class _Turn:
    """A key's time in a slot."""

    began: float
    tenant: str
    """Whose request began it."""
    leases: set[Ticket] = field(default_factory=set)
    num_leases: Counter[str] = field(default_factory=Counter)
    """Of each tenant."""
    idle_since: float = 0.0  # means something without leases only


class Slots:
    """Gives `num_slots` slots to keys in turn. After any change call `advance`."""

    def __init__(
        self, num_slots: int, quantum_seconds: float, linger_seconds: float, room: float = math.inf
    ) -> None:
        """`room`: how many requests of one tenant a key admits at a time."""
        self._num_slots, self._room = num_slots, room
        self._quantum = quantum_seconds
        self._linger = linger_seconds
        self._turns: dict[int, _Turn] = {}  # in the order in which they began
        self._waiting: dict[int, list[Ticket]] = {}
        self._pinned: set[int] = set()
        self._numbers = itertools.count()

    def ask(self, key: int, now: float, tenant: str = "") -> Ticket:
        """Put a request in the queue; a grant of `advance` admits it, maybe at once."""
        ticket = Ticket(key, next(self._numbers), now, tenant)
        self._waiting.setdefault(key, []).append(ticket)
        return ticket

    def leave(self, ticket: Ticket, now: float) -> None:
        """End a request, admitted or waiting. Each ticket leaves once (KeyError otherwise)."""
        key = ticket.key
        turn = self._turns.get(key)
        if turn and ticket in turn.leases:
            turn.leases.remove(ticket)
            turn.num_leases[ticket.tenant] -= 1
            turn.idle_since = now
        elif ticket in self._waiting.get(key, ()):
            self._waiting[key].remove(ticket)
            if not self._waiting[key]:
                del self._waiting[key]
        else:
            raise KeyError(ticket)

    def holds(self, key: int) -> bool:
        """Whether a key has a slot."""
        return key in self._turns

    def holders(self) -> list[int]:
        """The keys that have a slot."""
        return list(self._turns)

    def pin(self, key: int) -> None:
        """Let a key keep the slot that it has or will get.

        Raises:
            TooManyPins: it would leave no slot for the others.
        """
        if len(self._pinned | {key}) >= self._num_slots:
            raise TooManyPins(f"at most {self._num_slots - 1} of {self._num_slots} slots")
        self._pinned.add(key)

    def unpin(self, key: int) -> None:
        """Let a key make room again."""
        self._pinned.discard(key)

    def remove(self, key: int) -> None:
        """Take slot and pin away from a key without admitted requests (ValueError otherwise).

        What waits for it waits for another turn.
        """
        turn = self._turns.get(key)
        if turn and turn.leases:
            raise ValueError(f"{len(turn.leases)} requests run on {key}")
        self._pinned.discard(key)
        self._turns.pop(key, None)

    def advance(self, now: float) -> list[Grant]:
        """Admit what can be admitted, in turn."""
        grants = []
        while grant := self._next_grant(now):
            grants.append(grant)
        return grants

    def next_deadline(self) -> float | None:
        """When to call `advance` though nothing has changed: a holder has then lingered enough."""
        if all(self.holds(key) for key in self._waiting):
            return None
        return min((turn.idle_since + self._linger for _, turn in self._idle()), default=None)

    def _next_grant(self, now: float) -> Grant | None:
        queue = self._queue()
        closed = self._closed(queue, now)
        for key in queue:
            if self.holds(key) and key not in closed:
                return self._admit(key)
        if queue and (self.holds(queue[0]) or len(self._turns) < self._num_slots):
            return self._begin_turn(queue[0], now)
        victim = self._victim(closed, now) if queue else None
        return None if victim is None else self._begin_turn(queue[0], now, victim)

    def _queue(self) -> list[int]:
        """The keys that wait and have room, the next one first."""
        keys = {key for key in self._waiting if self._admissible(key)}
        num_slots = Counter(t.tenant for key, t in self._turns.items() if key not in keys)
        places: dict[int, tuple[int, float, int]] = {}
        for key in sorted(keys, key=self._in_line_since):
            tenant = self._waiting[key][0].tenant
            places[key] = num_slots[tenant], *self._in_line_since(key)
            num_slots[tenant] += 1
        return sorted(places, key=places.__getitem__)

    def _in_line_since(self, key: int) -> tuple[float, int]:
        """When a key's first request, or its turn's end, put it in the queue; and what comes first.

        What waited for room on a holder stands behind whoever asked before its turn was over.
        """
        first, turn = self._waiting[key][0], self._turns.get(key)
        turn_ended = turn.began + self._quantum if turn else first.asked_at
        return max(first.asked_at, turn_ended), first.number

    def _closed(self, queue: list[int], now: float) -> set[int]:
        """Holders that admit nothing, because others wait and their quantum is over."""
        waiting = [key for key in queue if not self.holds(key)]
        if not waiting:
            return set()
        over = [
            key
            for key, turn in self._turns.items()
            if key not in self._pinned and turn.began + self._quantum <= now
        ]
        longest = min(self._waiting[key][0].asked_at for key in waiting)
        long_wait = longest + self._quantum <= now
        return set(over if long_wait else over[: len(waiting)])

    def _victim(self, closed: set[int], now: float) -> int | None:
        """The holder that makes room: of the idle ones that needn't linger, the longest idle."""
        ready = {
            key: turn.idle_since
            for key, turn in self._idle()
            if key in closed or turn.idle_since + self._linger <= now
        }
        return min(ready, key=ready.__getitem__, default=None)

    def _idle(self) -> list[tuple[int, _Turn]]:
        return [
            (key, turn)
            for key, turn in self._turns.items()
            if not turn.leases and key not in self._pinned
        ]

    def _begin_turn(self, key: int, now: float, victim: int | None = None) -> Grant:
        """Give a key a slot, or the first in the queue, a closed holder, its next quantum."""
        if victim is not None:
            del self._turns[victim]
        turn = self._turns.pop(key, _Turn(now, ""))
        turn.began, turn.tenant = now, self._waiting[key][0].tenant
        self._turns[key] = turn
        return self._admit(key, victim)

    def _admissible(self, key: int) -> bool:
        """Whether any request that waits for a key needn't wait for one on it."""
        turn = self._turns.get(key)
        return turn is None or any(
            turn.num_leases[ticket.tenant] < self._room for ticket in self._waiting[key]
        )

    def _admit(self, key: int, victim: int | None = None) -> Grant:
        turn = self._turns[key]
        admitted: list[Ticket] = []
        left: list[Ticket] = []
        for ticket in self._waiting.pop(key):
            has_room = turn.num_leases[ticket.tenant] < self._room
            (admitted if has_room else left).append(ticket)
            turn.num_leases[ticket.tenant] += has_room
        turn.leases.update(admitted)
        if left:
            self._waiting[key] = left
        return Grant(key, tuple(admitted), victim)
