"""Bounds the memory of request bodies, which count from their arrival to the end of the answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from server.errors import Overloaded, OverQuota

_MIB = 1 << 20
RETRY_AFTER_SECONDS = 2


class BytesInFlight:
    """Counts bytes, in total and by tenant. It has no tasks and no clock."""

    def __init__(self, max_bytes: int, max_bytes_per_tenant: int) -> None:
        self._max_bytes, self._max_bytes_per_tenant = max_bytes, max_bytes_per_tenant
        self._by_tenant: Counter[str] = Counter()
        self.total = 0

    @contextmanager
    def held(self, tenant: str) -> Iterator[HeldBytes]:
        """Count what is added to the yielded object until the context ends."""
        held = HeldBytes(self, tenant)
        try:
            yield held
        finally:
            self._add(tenant, -held.num_bytes)

    def take(self, tenant: str, num_bytes: int) -> None:
        """Count more bytes of a tenant.

        Raises:
            OverQuota: the tenant holds as much as one tenant may.
            Overloaded: all tenants together hold as much as there is room for.
        """
        if self._by_tenant[tenant] + num_bytes > self._max_bytes_per_tenant:
            raise OverQuota(
                f"the requests of the tenant {tenant} that are being answered may hold "
                f"{self._max_bytes_per_tenant // _MIB} MiB of bodies: wait for some to end",
                retry_after_seconds=RETRY_AFTER_SECONDS,
            )
        if self.total + num_bytes > self._max_bytes:
            raise Overloaded(
                "the server holds as many request bodies as it has memory for: try again",
                retry_after_seconds=RETRY_AFTER_SECONDS,
            )
        self._add(tenant, num_bytes)

    def _add(self, tenant: str, num_bytes: int) -> None:
        self.total += num_bytes
        self._by_tenant[tenant] += num_bytes
        if not self._by_tenant[tenant]:
            del self._by_tenant[tenant]


class HeldBytes:
    """The bytes of one request."""

    def __init__(self, bytes_in_flight: BytesInFlight, tenant: str) -> None:
        self._bytes_in_flight, self._tenant = bytes_in_flight, tenant
        self.num_bytes = 0

    def add(self, num_bytes: int) -> None:
        """Count more bytes. Raises what `BytesInFlight.take` raises, and then counts none."""
        self._bytes_in_flight.take(self._tenant, num_bytes)
        self.num_bytes += num_bytes
