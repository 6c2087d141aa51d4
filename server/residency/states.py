"""Where each version's weights are, and what may happen to them next. Pure: no I/O, no clock.

The life of a version in one engine (`TRANSITIONS` has all of it):

    absent --wanted--> fetching --fetched--> loading --loaded--> ready --evicted---> draining
                          |                     |                  ^                    |
                          +------- failed ------+                  +----- wanted -------+
                                     |                                                  |
    failed <-------------------------+        absent <------------- gone ---------------+

Fetching brings the files to the local disk, loading the weights into the engine's host memory. A
slot is held on top of that (`slot_scheduler.py`). Draining waits for the last lease; then the
weights leave. A failed version is tried again when its pause is over.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0


class State(enum.StrEnum):
    """The state of a version in one engine."""

    ABSENT = "absent"
    FETCHING = "fetching"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


class Event(enum.StrEnum):
    """What happens to a version."""

    WANTED = "wanted"
    FETCHED = "fetched"
    LOADED = "loaded"
    FAILED = "failed"
    EVICTED = "evicted"
    GONE = "gone"


class Wait(enum.StrEnum):
    """What a request waits for before its first token."""

    SLOT = "slot"
    """A slot for its adapter: other adapters have them all."""
    LOAD = "load"
    """The adapter's weights, on their way into its slot."""
    PROMPT = "prompt"
    """Its place in the prompt queue: the engine has as many prompts as it computes at a time."""
    SHARE = "share"
    """Its own tenant's requests, of which as many are under way as one tenant may have."""
    ENGINE = "engine"
    """The engine, which has it and has no room for it in its memory or in the next step."""


class Tier(enum.StrEnum):
    """Where a request finds a version's weights, nearest first."""

    SLOT = "slot"
    HOST = "host"
    DISK = "disk"
    ORIGIN = "origin"


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.ABSENT, Event.WANTED): State.FETCHING,
    (State.FAILED, Event.WANTED): State.FETCHING,
    (State.FETCHING, Event.FETCHED): State.LOADING,
    (State.LOADING, Event.LOADED): State.READY,
    (State.FETCHING, Event.FAILED): State.FAILED,
    (State.LOADING, Event.FAILED): State.FAILED,
    (State.READY, Event.EVICTED): State.DRAINING,
    (State.DRAINING, Event.WANTED): State.READY,
    (State.DRAINING, Event.GONE): State.ABSENT,
}


class ImpossibleTransition(Exception):
    """An event that a version's state does not allow, which is an error in the program."""


@dataclass
class VersionEntry:
    """One version in one engine."""

    state: State = State.ABSENT
    leases: int = 0
    """The number of requests that were granted a slot: they run, or will when it is loaded."""
    waiting: int = 0
    """The number of requests that wait for a slot."""
    pinned: bool = False
    kept: bool = False
    """Whether a promotion waits for it. Then it is evicted last, and not for a prefetch."""
    retired: bool = False
    """Whether it is out of service. It then leaves with its last request."""
    used_at: float = 0.0
    num_bytes: int = 0
    """The most bytes that its weights take in host memory."""
    error: str = ""
    failures: int = 0
    retry_at: float = 0.0

    def on(self, event: Event) -> None:
        """Take the transition for an event. Raises `ImpossibleTransition` if there is none."""
        try:
            self.state = TRANSITIONS[(self.state, event)]
        except KeyError:
            raise ImpossibleTransition(f"{event} while {self.state}") from None

    def fail(self, error: str, now: float) -> None:
        """Record a failed fetch or load. The pause before the next try doubles each time."""
        self.on(Event.FAILED)
        pause = min(FIRST_PAUSE_SECONDS * 2**self.failures, LONGEST_PAUSE_SECONDS)
        self.error, self.failures, self.retry_at = error, self.failures + 1, now + pause

    @property
    def in_use(self) -> bool:
        """Return whether a request runs on it or waits for it."""
        return bool(self.leases or self.waiting)

    @property
    def in_memory(self) -> bool:
        """Return whether it counts against the host budget: it is in memory or being loaded."""
        if self.state is State.DRAINING:
            return self.in_use
        return self.state in (State.LOADING, State.READY)

    @property
    def evictable(self) -> bool:
        """Return whether it may be evicted. A request that only waits for it has no lease yet."""
        return self.state is State.READY and not self.leases and not self.pinned


class VersionStates:
    """The versions that one engine has, had or wants, by the version's id."""

    def __init__(
        self, host_budget: int, in_slot: Callable[[int], bool], host_bytes: float = math.inf
    ) -> None:
        """Bound the engine's host memory, which also holds the versions that are in slots.

        `host_budget` is the largest number of versions, `host_bytes` of bytes.
        """
        self._budget, self._in_slot, self._host_bytes = host_budget, in_slot, host_bytes
        self._entries: dict[int, VersionEntry] = {}

    def __getitem__(self, version_id: int) -> VersionEntry:
        """Return the version's entry; create it if there is none."""
        return self._entries.setdefault(version_id, VersionEntry())

    def items(self) -> list[tuple[int, VersionEntry]]:
        """Return every entry with its version's id."""
        return list(self._entries.items())

    def has(self, version_id: int, *states: State) -> bool:
        """Return whether a version is in one of these states."""
        entry = self._entries.get(version_id)
        return entry is not None and entry.state in states

    def forget(self, version_id: int) -> bool:
        """Remove the entry if its weights are not in memory and no request waits for it.

        Returns True if it was removed.
        """
        entry = self._entries.get(version_id, VersionEntry())
        if entry.state in (State.ABSENT, State.FAILED) and not entry.in_use:
            self._entries.pop(version_id, None)
            return True
        return False

    def to_evict(self, coming_bytes: list[int], *, spare_waiting: bool) -> list[int] | None:
        """Choose which versions to evict so that more fit, whose sizes are `coming_bytes`.

        Leased and pinned versions stay. Versions that neither a request nor a promotion waits for
        leave first (with `spare_waiting` only those), then versions without a slot, then those
        that were used least recently. Returns None if the new ones cannot fit now.
        """
        in_memory = [entry.num_bytes for entry in self._entries.values() if entry.in_memory]
        surplus = len(in_memory) + len(coming_bytes) - self._budget
        surplus_bytes = sum(in_memory) + sum(coming_bytes) - self._host_bytes
        candidates = sorted(
            (entry.waiting > 0, entry.kept, self._in_slot(version_id), entry.used_at, version_id)
            for version_id, entry in self._entries.items()
            if entry.evictable and not (spare_waiting and (entry.waiting or entry.kept))
        )
        leaving: list[int] = []
        for *_, version_id in candidates:
            if surplus <= 0 and surplus_bytes <= 0:
                break
            leaving.append(version_id)
            surplus -= 1
            surplus_bytes -= self._entries[version_id].num_bytes
        return leaving if surplus <= 0 and surplus_bytes <= 0 else None
