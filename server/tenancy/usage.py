"""Usage as it happens, kept in memory until it is recorded."""

from __future__ import annotations

import threading

from adapters_registry.records.tables import now
from adapters_registry.records.usage.consumption import Consumption, UsageKey, hour_of
from adapters_registry.records.usage.recording import add_usage
from adapters_registry.registry import Registry


class UsageBuffer:
    """Adds up what tenants use and records it from time to time, so no request waits for a disk."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._unsaved: dict[UsageKey, Consumption] = {}
        self._lock = threading.Lock()

    def add(self, tenant_id: str, tenant: str, adapter: str, used: Consumption) -> None:
        """Count a request that has ended."""
        key = hour_of(now()), tenant_id, tenant, adapter
        with self._lock:
            self._unsaved[key] = self._unsaved.get(key, Consumption()) + used

    def save(self) -> None:
        """Record the usage. If that fails, it is kept for the next time."""
        with self._lock:
            taken, self._unsaved = self._unsaved, {}
        try:
            if taken:
                with self._registry.session() as session:
                    add_usage(session, taken)
        except BaseException:
            with self._lock:
                for key, used in taken.items():
                    self._unsaved[key] = self._unsaved.get(key, Consumption()) + used
            raise
