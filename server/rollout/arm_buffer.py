"""Counts the requests of both sides of a split, and records them for the judge."""

from __future__ import annotations

import threading
import uuid

from adapters_registry.registry import Registry
from adapters_registry.rollout.arms import ArmCounts
from adapters_registry.rollout.traffic import Arm, save_traffic
from server.request_log.record import RequestRecord

MAX_ARMS = 10_000
"""Of so many the counts are kept. Then those that were counted first are dropped."""
_NOT_THE_VERSIONS = ("slot", "load")
"""Stages whose time isn't counted: the side with fewer requests waits longer for a slot."""


class ArmBuffer:
    """What this process has counted. Each row of the database belongs to one process."""

    def __init__(self, registry: Registry) -> None:
        self._registry, self._process = registry, uuid.uuid4().hex
        self._counts: dict[Arm, ArmCounts] = {}
        self._unsaved: set[Arm] = set()
        self._lock = threading.Lock()

    def note(self, record: RequestRecord) -> None:
        """Count a request that has ended, if it was one of a split.

        Requests that the server refused, or whose client left first, say nothing of a version.
        """
        if record.arm is None or 400 <= record.status < 500:
            return
        failed = record.failed or record.status >= 500 or not record.complete
        with self._lock:
            counts = self._counts.setdefault(record.arm, ArmCounts())
            counts.add(failed=failed, tokens=record.output_tokens, first_token=_first_token(record))
            self._unsaved.add(record.arm)
            if len(self._counts) > MAX_ARMS:
                oldest = next(iter(self._counts))
                del self._counts[oldest]
                self._unsaved.discard(oldest)

    def save(self) -> None:
        """Record the counts that have changed. If that fails, it is done the next time."""
        with self._lock:
            taken, self._unsaved = self._unsaved, set()
            counts = {arm: self._counts[arm] + ArmCounts() for arm in taken}
        try:
            if counts:
                with self._registry.session() as session:
                    save_traffic(session, self._process, counts)
        except BaseException:
            with self._lock:
                self._unsaved |= taken & self._counts.keys()
            raise


def _first_token(record: RequestRecord) -> float | None:
    """Return the seconds to the first token, without the wait for a slot and the load."""
    at = record.ends.get("first_token")
    if at is None:
        return None
    stages = record.stage_seconds()
    return at - sum(stages.get(stage, 0.0) for stage in _NOT_THE_VERSIONS)
