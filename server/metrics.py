"""Every metric of ours, declared once.

They are in prometheus_client's default registry, beside vLLM's own `vllm:*`.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Sequence

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase

MAX_ADAPTER_LABELS = 1000
MAX_TIMED_LABELS = 100
"""How many pairs of tenant and adapter have histograms of their own, of dozens of series each."""
OTHER = "other"
UNUSED_SECONDS = 3600.0
"""After this time without use a label value may give its place to another."""


class BatchedHistogram(Histogram):
    """A histogram that also takes the counts of many observations, made elsewhere, at once.

    `observe` takes some microseconds, and this process handles thousands of tokens a second.
    """

    def bucket_of(self, amount: float) -> int:
        """Return the index of the bucket that an observation belongs to."""
        return bisect_left(self._upper_bounds, amount)

    def no_counts(self) -> list[int]:
        """Return a zero for each bucket."""
        return [0] * len(self._upper_bounds)

    def add(self, counts: Sequence[int], total: float) -> None:
        """Add observations: how many are in each bucket, and their sum."""
        self._sum.inc(total)
        for bucket, count in zip(self._buckets, counts, strict=True):
            if count:
                bucket.inc(count)


REQUESTS = Counter(
    "loraplex_requests_total",
    "Requests answered, by status code.",
    ["tenant", "adapter", "endpoint", "code"],
)
TOKENS = Counter(
    "loraplex_tokens_total", "Tokens of prompts and answers.", ["tenant", "adapter", "direction"]
)
ADAPTER_LOAD_SECONDS = Histogram(
    "loraplex_adapter_load_seconds",
    "Time to load an adapter into the engine.",
    ["from_tier", "outcome"],
    buckets=(0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
)
QUEUE_SECONDS = Histogram(
    "loraplex_queue_seconds",
    "Time that requests wait before the engine gets them.",
    ["tenant", "reason"],
    buckets=(0.001, 0.01, 0.05, 0.1, 0.5, 1, 2, 5, 10, 30, 60),
)
_TIMED = ["tenant", "adapter", "tier"]
TIME_TO_FIRST_TOKEN = Histogram(
    "loraplex_time_to_first_token_seconds",
    "From a request's arrival to its first token, by the tier where its adapter was found.",
    _TIMED,
    buckets=(0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60),
)
INTER_TOKEN_SECONDS = BatchedHistogram(
    "loraplex_inter_token_seconds",
    "Between the tokens of an answer, once for each step of the engine.",
    _TIMED,
    buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5),
)
REQUEST_SECONDS = Histogram(
    "loraplex_request_seconds",
    "From a request's arrival to the end of its answer.",
    _TIMED,
    buckets=(0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300),
)
EVICTIONS = Counter(
    "loraplex_evictions_total",
    "Versions evicted to make room (capacity), or because they went out of service (dismissed, "
    "retired).",
    ["tier", "reason"],
)
ENDED_EARLY = Counter(
    "loraplex_ended_early_total",
    "Requests ended so that another tenant gets a slot (preempted), or because they ran as long as "
    "a request may (request_timeout).",
    ["tenant", "reason"],
)
LEASES = Gauge("loraplex_leases", "Running requests that hold a version.", ["adapter"])
AUTHENTICATION_FAILURES = Counter(
    "loraplex_authentication_failures_total",
    "Requests refused for their API key: missing, unknown, revoked, expired, or without the scope.",
    ["reason"],
)
ENGINE_STARTS = Counter("loraplex_engine_starts_total", "How often the engine became ready.")

# A rate or an increase needs a value before the first event, so series whose labels are known
# begin at zero.
for _reason in ("missing", "unknown", "revoked", "expired", "scope"):
    AUTHENTICATION_FAILURES.labels(_reason)
for _tier in ("host", "disk", "origin"):
    for _outcome in ("ok", "failed"):
        ADAPTER_LOAD_SECONDS.labels(_tier, _outcome)
for _tier, _reason in (
    ("slot", "capacity"),
    ("host", "capacity"),
    ("host", "dismissed"),
    ("host", "retired"),
    ("disk", "capacity"),
):
    EVICTIONS.labels(_tier, _reason)


class CappedLabels:
    """Keeps a series for each label value until there are too many. Further values become `other`.

    A value that was not used for `UNUSED_SECONDS` gives its place, and its series, to a new one.
    So adapters and tenants that come and go don't use up the places.
    """

    def __init__(
        self,
        limit: int,
        names: tuple[str, ...],
        metrics: Sequence[MetricWrapperBase] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`names`: the labels in `metrics`, whose series are removed; `clock`: in seconds."""
        self._limit, self._names, self._metrics, self._clock = limit, names, metrics, clock
        self._used_at: OrderedDict[tuple[str, ...], float] = OrderedDict()
        """The least recently used first."""

    def __call__(self, value: str) -> str:
        """Return the value, or `other`."""
        return self.of(value)[0]

    def of(self, *values: str) -> tuple[str, ...]:
        """Return the values, or `other` for each of them."""
        now = self._clock()
        if values not in self._used_at and len(self._used_at) >= self._limit:
            oldest, used_at = next(iter(self._used_at.items()))
            if now - used_at < UNUSED_SECONDS:
                return (OTHER,) * len(values)
            del self._used_at[oldest]
            for metric in self._metrics:
                metric.remove_by_labels(dict(zip(self._names, oldest, strict=True)))
        self._used_at[values] = now
        self._used_at.move_to_end(values)
        return values


adapter_label = CappedLabels(MAX_ADAPTER_LABELS, ("adapter",), (REQUESTS, TOKENS, LEASES))
tenant_label = CappedLabels(MAX_ADAPTER_LABELS, ("tenant",), (REQUESTS, TOKENS, QUEUE_SECONDS))
timed_labels = CappedLabels(
    MAX_TIMED_LABELS,
    ("tenant", "adapter"),
    (TIME_TO_FIRST_TOKEN, INTER_TOKEN_SECONDS, REQUEST_SECONDS),
)
