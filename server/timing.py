"""How long answers take, from the arrival of a request: with all its waits for a turn or a slot,
which vLLM's own times leave out."""

from __future__ import annotations

import time

from server import metrics


class Timing:
    """The times of one request, observed as its tokens come."""

    def __init__(self, started: float, tenant: str, adapter: str, tier: str) -> None:
        """`started`: on the clock of `time.monotonic`; `tier`: where its adapter was found."""
        labels = (*metrics.timed_labels.of(tenant, adapter), tier)
        self._first_token = metrics.TIME_TO_FIRST_TOKEN.labels(*labels)
        self._inter_token = metrics.INTER_TOKEN_SECONDS.labels(*labels)
        self._request = metrics.REQUEST_SECONDS.labels(*labels)
        self._started, self._answers = started, False

    def tokens(self, count: int, before: float | None, since_first: float | None) -> float:
        """Observe tokens of one choice that come now; the time, for the next call's `before`.

        Observed once a call: their mean distance. `before` is when the choice's last ones came.
        Where they are its first ones, the first of them came `since_first` seconds ago; several at
        once of which that isn't known are left out.
        """
        now = time.monotonic()
        is_first, self._answers = not self._answers, True
        if before is None:
            if since_first is None and count > 1:
                return now
            before, count = now - (since_first or 0.0), count - 1
            if is_first:
                self._first_token.observe(before - self._started)
        if count:
            self._inter_token.observe((now - before) / count)
        return now

    def end(self) -> None:
        """Observe the whole, unless there was no answer."""
        if self._answers:
            self._request.observe(time.monotonic() - self._started)
