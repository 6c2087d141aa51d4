"""Keeps the requests of the last hour in memory, so that a slow one can be explained."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from server.request_log.record import RequestRecord

MAX_RECORDS = 20_000
"""24 MB, measured with tracemalloc. A busy server keeps less than an hour."""
MAX_AGE_SECONDS = 3600.0


class RecentRequests:
    """Requests that have ended, the newest first."""

    def __init__(self, max_records: int = MAX_RECORDS, max_age_seconds: float = MAX_AGE_SECONDS):
        self._records: deque[RequestRecord] = deque(maxlen=max_records)
        self._max_age_seconds = max_age_seconds
        self.num_added = 0
        """How many records were added so far, with those that are dropped."""

    def add(self, record: RequestRecord) -> None:
        """Keep a record, and drop those that are too old."""
        self._records.append(record)
        self.num_added += 1
        while self._records and self._records[0].age_seconds > self._max_age_seconds:
            self._records.popleft()

    def snapshot(self) -> list[RequestRecord]:
        """Return all records that are kept, the oldest first, for another thread to look at."""
        return [*self._records]

    def find(self, wanted: Callable[[RequestRecord], bool]) -> Iterator[RequestRecord]:
        """Yield the records for which `wanted` is true, the newest first."""
        return (
            record
            for record in reversed(self._records)
            if record.age_seconds <= self._max_age_seconds and wanted(record)
        )
