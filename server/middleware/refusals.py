"""Counts requests that fail to authenticate by reason, and logs a few of them."""

from __future__ import annotations

import logging
import re
import time

from server import metrics

log = logging.getLogger(__name__)

LINES_A_MINUTE = 20
_KEY_ID = re.compile(r"lpx-([0-9a-f]{12})-")


class Refusals:
    """Counts refused keys, and logs them at a limited rate: a flood must not fill the disk."""

    def __init__(self) -> None:
        self._minute_began, self._num_lines, self._num_left_out = 0.0, 0, 0

    def note(self, reason: str, presented: str | None, address: str) -> None:
        """Count a refused request. The log names the key's public part, never its secret."""
        metrics.AUTHENTICATION_FAILURES.labels(reason).inc()
        now = time.monotonic()
        if now - self._minute_began >= 60:
            if self._num_left_out:
                log.warning("%d more requests were refused in that minute", self._num_left_out)
            self._minute_began, self._num_lines, self._num_left_out = now, 0, 0
        if self._num_lines >= LINES_A_MINUTE:
            self._num_left_out += 1
            return
        self._num_lines += 1
        found = _KEY_ID.match(presented or "")
        log.warning(
            "refused a request from %s with %s: %s",
            address or "an unknown address",
            f"key {found.group(1)}" if found else "no key id",
            reason,
        )
