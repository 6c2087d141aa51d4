"""A circuit breaker: after several failures in a row a store is not called for a while."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from adapters_registry.errors import StoreUnavailable

FAILURES = 3
PAUSE_SECONDS = 15.0


class CircuitBreaker:
    """Refuses calls for `PAUSE_SECONDS` after `FAILURES` calls in a row failed.

    Otherwise each caller would wait for the time-out of a store that does not answer, and keep a
    thread that others need.
    """

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        """`name` is the store's, for the message."""
        self._name, self._clock = name, clock
        self._lock = threading.Lock()
        self._num_failures, self._open_until = 0, 0.0

    @contextmanager
    def calling(self) -> Iterator[None]:
        """Watch one call.

        Raises:
            StoreUnavailable: the call failed, or the store is not called at present.
        """
        with self._lock:
            seconds = self._open_until - self._clock()
        if seconds > 0:
            raise StoreUnavailable(
                f"{self._name} did not answer lately; it is tried again in {seconds:.0f} s"
            )
        try:
            yield
        except StoreUnavailable:
            with self._lock:
                self._num_failures += 1
                if self._num_failures >= FAILURES:
                    self._open_until = self._clock() + PAUSE_SECONDS
            raise
        with self._lock:
            self._num_failures = 0
