"""What the requests of the last hour on this server say of adapters and versions."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from server.request_log.record import RequestRecord

Key = TypeVar("Key", bound=Hashable)


@dataclass
class Traffic:
    """Requests that have one thing in common, such as their adapter."""

    requests: int = 0
    errors: int = 0
    """Answered with 500 or above, or cut off after they began."""
    output_tokens: int = 0
    last_at: datetime | None = None
    seconds: list[float] = field(default_factory=list)
    """How long the answered ones took."""
    first_token_seconds: list[float] = field(default_factory=list)

    def add(self, record: RequestRecord) -> None:
        """Count one more request."""
        self.requests += 1
        self.errors += is_error(record)
        self.output_tokens += record.output_tokens
        if self.last_at is None or record.started_at > self.last_at:
            self.last_at = record.started_at
        if record.status < 400:
            self.seconds.append(record.seconds)
        if (at := record.ends.get("first_token")) is not None:
            self.first_token_seconds.append(at)

    @property
    def median_seconds(self) -> float | None:
        """How long half of the requests took at most."""
        return quantile(self.seconds, 0.5)

    @property
    def median_first_token(self) -> float | None:
        """After how long half of the requests had their first token."""
        return quantile(self.first_token_seconds, 0.5)

    @property
    def slow_first_token(self) -> float | None:
        """After how long 95 of 100 requests had their first token."""
        return quantile(self.first_token_seconds, 0.95)

    @property
    def error_share(self) -> float:
        """The share of requests that failed."""
        return self.errors / self.requests if self.requests else 0.0


def is_error(record: RequestRecord) -> bool:
    """Whether a request was answered with 500 or above, or cut off after its answer began."""
    return record.status >= 500 or (record.status < 400 and not record.complete)


class RecentColumns:
    """The requests of the last minutes as columns of numbers, which are added up in a millisecond.

    A page that shows them asks every two seconds, and each request is looked at only once. Any
    thread may ask.
    """

    COLUMNS = 6
    ENDED_AT, TENANT, TOKENS, FAILED, ERROR, FIRST_TOKEN = range(COLUMNS)
    """`FAILED`: 1 if it was answered with 500 or above. `FIRST_TOKEN` is NaN if there was none."""

    def __init__(self, span_seconds: float) -> None:
        """`span_seconds`: how long ago the oldest request may have ended."""
        self._span_seconds = span_seconds
        self._lock = threading.Lock()
        self._rows: NDArray[np.float64] = np.empty((0, self.COLUMNS))
        self._num_seen = 0
        self._tenants: dict[str, int] = {}

    def update(
        self, records: Sequence[RequestRecord], num_added: int, now: float, tenant_id: str | None
    ) -> NDArray[np.float64]:
        """Return a row for each request to the API in the span, the oldest first.

        Args:
            records: in the order in which they ended.
            num_added: how many there have been when these were looked up, with those dropped since.
            now: as `time.monotonic` counts.
            tenant_id: whose requests they are; None for everyone's.
        """
        since = now - self._span_seconds
        with self._lock:
            num_new = min(max(num_added - self._num_seen, 0), len(records))
            self._num_seen = max(num_added, self._num_seen)
            new = [
                self._row(record)
                for record in records[len(records) - num_new :]
                if record.ended_at > since and record.path.startswith("/v1/")
            ]
            kept = self._rows[self._rows[:, self.ENDED_AT] > since]
            rows = self._rows = np.concatenate([kept, np.array(new).reshape(-1, self.COLUMNS)])
            tenant = self._tenants.get(tenant_id or "", -1)
        return rows if tenant_id is None else rows[rows[:, self.TENANT] == tenant]

    def _row(self, record: RequestRecord) -> tuple[float, ...]:
        return (
            record.ended_at,
            self._tenants.setdefault(record.tenant_id, len(self._tenants)),
            record.output_tokens,
            record.status >= 500,
            is_error(record),
            record.ends.get("first_token", np.nan),
        )


def traffic_by(
    records: Iterable[RequestRecord], key: Callable[[RequestRecord], Key | None]
) -> Mapping[Key, Traffic]:
    """Sum up records by a key; those whose key is None are left out."""
    found: dict[Key, Traffic] = defaultdict(Traffic)
    for record in records:
        if (value := key(record)) is not None:
            found[value].add(record)
    return found


def quantile(values: list[float], share: float) -> float | None:
    """Return the smallest value that a share of the values doesn't exceed; None if there are none.

    `share` is between 0 and 1.
    """
    if not values:
        return None
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
