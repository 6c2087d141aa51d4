"""Every metric of ours, declared once.

They are in prometheus_client's default registry, beside vLLM's own `vllm:*`.
"""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

MAX_ADAPTER_LABELS = 1000
MAX_TIMED_LABELS = 100
"""Pairs of tenant and adapter that have their own histograms, which are dozens of series each."""
OTHER = "other"

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
WAITING = Gauge(
    "loraplex_waiting",
    "Requests that wait now: for a slot (slot), or for their tenant's turn (share).",
    ["reason"],
)
_TIMED = ["tenant", "adapter", "tier"]
TIME_TO_FIRST_TOKEN = Histogram(
    "loraplex_time_to_first_token_seconds",
    "From a request's arrival to its first token, by the tier where its adapter was found.",
    _TIMED,
    buckets=(0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60),
)
INTER_TOKEN_SECONDS = Histogram(
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
LEASES = Gauge("loraplex_leases", "Running requests that hold a version.", ["adapter"])
AUTHENTICATION_FAILURES = Counter(
    "loraplex_authentication_failures_total",
    "Requests refused for their API key: missing, unknown, revoked, expired, or without the scope.",
    ["reason"],
)
ENGINE_STARTS = Counter("loraplex_engine_starts_total", "How often the engine became ready.")


class CappedLabels:
    """Keeps label values until there are too many; further ones become `other`."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: set[tuple[str, ...]] = set()

    def __call__(self, value: str) -> str:
        """Return the value, or `other`."""
        return self.of(value)[0]

    def of(self, *values: str) -> tuple[str, ...]:
        """Return the values, or `other` for each of them."""
        if values not in self._known and len(self._known) >= self._limit:
            return (OTHER,) * len(values)
        self._known.add(values)
        return values


adapter_label = CappedLabels(MAX_ADAPTER_LABELS)
tenant_label = CappedLabels(MAX_ADAPTER_LABELS)
timed_labels = CappedLabels(MAX_TIMED_LABELS)
