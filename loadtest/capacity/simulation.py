"""Simulates other numbers of slots and replicas, and other sizes of the host cache. Pure.

A replica has slots and a host cache. Both evict the adapter that wasn't used for longest, but never
one in use. A request that finds no free slot waits in line. Requests with a slot share the engine:
each gets a token in every step, and a step takes longer the more requests there are. The times come
from a measured run (`fit.py`).
"""

from __future__ import annotations

import heapq
import itertools
import zlib
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

SLOT, HOST, DISK = "slot", "host", "disk"


@dataclass(frozen=True)
class Arrival:
    """One request of a trace; `adapter` is None for the base."""

    at: float
    adapter: str | None
    tokens_in: int
    tokens_out: int


@dataclass(frozen=True)
class Setting:
    """The setting to simulate."""

    max_loras: int
    host_cache: int
    """How many adapters fit host memory. Those in slots are among them."""
    replicas: int = 1


class Times(Protocol):
    """How long things take, in seconds."""

    def first_token(self, tokens_in: int, running: int) -> float:
        """Return the seconds from the start to the first token, beside `running` other requests."""

    def step(self, running: int) -> float:
        """Return the seconds between two tokens."""

    def load(self, tier: str) -> float:
        """Return the seconds to load an adapter into a slot from a tier."""


Route = Callable[[str, Sequence[int]], int]
"""Given an adapter and the open requests of each replica, returns the replica for a request."""


@dataclass
class Served:
    """How an arrival was served. Times are in seconds."""

    arrival: Arrival
    tier: str = ""
    """Where its adapter was found. It is empty for the base."""
    ttft: float = 0.0
    e2e: float = 0.0


def simulate(
    arrivals: Iterable[Arrival],
    setting: Setting,
    times: Times,
    resident: Mapping[str, str] = MappingProxyType({}),
    route: Route | None = None,
) -> list[Served]:
    """Serve a trace, by time. Without a `route` an adapter's requests go to the same replica.

    `resident` gives the tier of the adapters that are in a slot or in host memory at the start.
    """
    replicas = [_Replica(setting, times) for _ in range(setting.replicas)]

    def home(adapter: str) -> _Replica:
        return replicas[zlib.crc32(adapter.encode()) % setting.replicas]

    for adapter, tier in resident.items():
        first = home(adapter) if route is None else replicas[route(adapter, [0] * len(replicas))]
        first.hold(adapter, tier)
    turns = itertools.cycle(replicas)
    for arrival in arrivals:
        if arrival.adapter is None:
            replica = next(turns)
        elif route is None:
            replica = home(arrival.adapter)
        else:
            for other in replicas:
                other.run_until(arrival.at)
            replica = replicas[route(arrival.adapter, [other.num_open for other in replicas])]
        replica.arrive(arrival)
    return [served for replica in replicas for served in replica.finish()]


@dataclass
class _Slot:
    leases: int = 0
    ready: bool = False
    queue: list[Served] = field(default_factory=list)
    """The requests that wait until it is loaded."""


@dataclass
class _Stream:
    served: Served
    tokens_left: float


class _Replica:
    """One engine. An event is a time, a number that orders equal times, and what to do then."""

    def __init__(self, setting: Setting, times: Times) -> None:
        self._setting, self._times = setting, times
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._numbers = itertools.count()
        self._slots: OrderedDict[str, _Slot] = OrderedDict()
        self._host: OrderedDict[str, None] = OrderedDict()
        self._line: deque[Served] = deque()
        self._streams: list[_Stream] = []
        self._prefills = 0
        self._progress_at = 0.0
        self._plan = 0
        self._served: list[Served] = []
        self.num_open = 0

    def hold(self, adapter: str, tier: str) -> None:
        """Start with an adapter in a tier, if it has room."""
        if tier == SLOT and len(self._slots) < self._setting.max_loras:
            self._slots[adapter] = _Slot(ready=True)
        self._remember(adapter)

    def arrive(self, arrival: Arrival) -> None:
        """Let a request arrive at its time. The requests of a replica arrive in order."""
        self.run_until(arrival.at)
        self.num_open += 1
        served = Served(arrival)
        self._served.append(served)
        if arrival.adapter is None:
            self._start(served, arrival.at)
            return
        served.tier = self._tier(arrival.adapter)
        self._line.append(served)
        self._serve_line(arrival.at)

    def finish(self) -> list[Served]:
        """Run until the last request is answered. Returns all requests."""
        self.run_until(float("inf"))
        return self._served

    def run_until(self, until: float) -> None:
        """Process all events up to a time."""
        while self._events and self._events[0][0] <= until:
            at, _, event = heapq.heappop(self._events)
            event(at)

    def _at(self, at: float, event: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (at, next(self._numbers), event))

    def _tier(self, adapter: str) -> str:
        slot = self._slots.get(adapter)
        if slot is not None and slot.ready:
            return SLOT
        return HOST if adapter in self._host else DISK

    def _serve_line(self, now: float) -> None:
        """Start the requests whose adapter has a slot or can get one. Others keep their order."""
        waiting: deque[Served] = deque()
        for served in self._line:
            if not self._try(served, now):
                waiting.append(served)
        self._line = waiting

    def _try(self, served: Served, now: float) -> bool:
        adapter = served.arrival.adapter
        assert adapter is not None
        slot = self._slots.get(adapter)
        if slot is None:
            if not self._make_room():
                return False
            slot = self._slots[adapter] = _Slot()
            tier = HOST if adapter in self._host else DISK
            self._at(now + self._times.load(tier), lambda at: self._loaded(adapter, at))
        self._touch(adapter)
        slot.leases += 1
        if slot.ready:
            self._start(served, now)
        else:
            slot.queue.append(served)
        return True

    def _make_room(self) -> bool:
        if len(self._slots) < self._setting.max_loras:
            return True
        idle = next((name for name, slot in self._slots.items() if not slot.leases), None)
        if idle is None:
            return False
        del self._slots[idle]
        return True

    def _touch(self, adapter: str) -> None:
        self._slots.move_to_end(adapter)
        self._remember(adapter)

    def _remember(self, adapter: str) -> None:
        """Make an adapter the most recently used one in host memory."""
        self._host[adapter] = None
        self._host.move_to_end(adapter)
        while len(self._host) > max(self._setting.host_cache, self._setting.max_loras):
            self._host.popitem(last=False)

    def _loaded(self, adapter: str, now: float) -> None:
        slot = self._slots[adapter]
        slot.ready = True
        for served in slot.queue:
            self._start(served, now)
        slot.queue.clear()

    def _start(self, served: Served, now: float) -> None:
        running = len(self._streams) + self._prefills
        self._prefills += 1
        wait = self._times.first_token(served.arrival.tokens_in, running)
        self._at(now + wait, lambda at: self._first_token(served, at))

    def _first_token(self, served: Served, now: float) -> None:
        self._advance(now)
        self._prefills -= 1
        served.ttft = now - served.arrival.at
        self._streams.append(_Stream(served, served.arrival.tokens_out - 1))
        self._plan_next(now)

    def _advance(self, now: float) -> None:
        """Move streams on by as many tokens as there were steps."""
        if self._streams:
            tokens = (now - self._progress_at) / self._times.step(len(self._streams))
            for stream in self._streams:
                stream.tokens_left -= tokens
        self._progress_at = now

    def _plan_next(self, now: float) -> None:
        """Plan the end of the next stream. A later plan takes this one's place."""
        self._plan += 1
        plan = self._plan
        if self._streams:
            left = max(0.0, min(stream.tokens_left for stream in self._streams))
            end = now + left * self._times.step(len(self._streams))
            self._at(end, lambda at: self._end_streams(at) if plan == self._plan else None)

    def _end_streams(self, now: float) -> None:
        self._advance(now)
        ended = [stream for stream in self._streams if stream.tokens_left <= 1e-6]
        self._streams = [stream for stream in self._streams if stream.tokens_left > 1e-6]
        self.num_open -= len(ended)
        for stream in ended:
            stream.served.e2e = now - stream.served.arrival.at
            if (adapter := stream.served.arrival.adapter) is not None:
                self._slots[adapter].leases -= 1
        self._serve_line(now)
        self._plan_next(now)
