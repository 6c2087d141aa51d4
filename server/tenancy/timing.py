"""How long answers take, from the arrival of a request: with all its waits for a turn or a slot,
which vLLM's own times leave out."""

from __future__ import annotations

import time
from collections.abc import Callable

from server import metrics

WRITE_SECONDS = 1.0
"""How often a running answer writes the times between its tokens to their histogram."""


class Timing:
    """The times of one request, observed as its tokens come."""

    def __init__(
        self,
        started: float,
        tenant: str,
        adapter: str,
        tier: str,
        clock: Callable[[], float] = time.monotonic,
        trace_id: str = "",
    ) -> None:
        """`started`: on this clock; `tier`: where its adapter was found.

        `trace_id` becomes an exemplar of the first token's and the whole request's time, so that a
        chart of them leads to a trace.
        """
        labels = (*metrics.timed_labels.of(tenant, adapter), tier)
        self._first_token = metrics.TIME_TO_FIRST_TOKEN.labels(*labels)
        self._inter_token = metrics.INTER_TOKEN_SECONDS.labels(*labels)
        self._request = metrics.REQUEST_SECONDS.labels(*labels)
        self._exemplar = {"trace_id": trace_id} if trace_id else None
        self._started, self._answers, self._clock = started, False, clock
        self._counts, self._sum = self._inter_token.no_counts(), 0.0
        self._write_at = started

    def tokens(self, count: int, before: float | None) -> float:
        """Record that tokens of one choice arrived now. Returns now, as the next call's `before`.

        `before` is when the choice's previous tokens arrived. The inter-token latency is recorded
        once per call, as (now - before) / count.
        """
        now = self._clock()
        if not self._answers:
            self._answers = True
            self._first_token.observe(now - self._started, self._exemplar)
        if before is not None:
            seconds = (now - before) / count
            self._counts[self._inter_token.bucket_of(seconds)] += 1
            self._sum += seconds
            if now >= self._write_at:
                self._write(now)
        return now

    def _write(self, now: float) -> None:
        self._inter_token.add(self._counts, self._sum)
        self._counts, self._sum = self._inter_token.no_counts(), 0.0
        self._write_at = now + WRITE_SECONDS

    def end(self) -> None:
        """Record the time of the whole request, if it had an answer."""
        if self._answers:
            now = self._clock()
            self._write(now)
            self._request.observe(now - self._started, self._exemplar)
