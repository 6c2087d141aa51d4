"""What the requests of the last hour on this server say of adapters and versions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

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
        self.errors += record.status >= 500 or (record.status < 400 and not record.complete)
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
