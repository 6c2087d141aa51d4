"""Whose adapters a soak asks for: five tenants with quotas of their own, and their adapters. Pure.

A content is what an adapter's weights are: it is known by a number, which is the seed of the
weights. Adapter number n begins with content n.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

CHANGES_EVERY = 7
"""One adapter in so many gets new versions during the soak."""
PASSING_CONTENTS = range(1_000_000, 1_000_040)
"""Contents of adapters that are registered and soon deleted, in any tenant."""
ZIPF_EXPONENT = 1.0
COMPOSED = "composed"
"""The adapter under which the server keeps compositions that requests name."""


@dataclass(frozen=True, eq=False)
class Tenant:
    """A tenant, what it may use, and which endpoint its clients ask."""

    name: str
    quota: Mapping[str, int]
    is_chat: bool = False
    num_clients: int = 3

    def promises(self, refusal: str) -> bool:
        """Return whether the quota says that a request may be refused with this 429."""
        words = {
            "requests_per_minute": "requests a minute",
            "tokens_per_minute": "tokens a minute",
            "concurrent_requests": "requests at a time",
        }
        return any(
            f"{self.quota[name]} {words[name]}" in refusal for name in words.keys() & self.quota
        )


TENANTS = (
    Tenant("soak-weighty", {"weight": 2, "compositions": 2}),
    Tenant("soak-paced", {"requests_per_minute": 40, "compositions": 2}),
    Tenant("soak-metered", {"tokens_per_minute": 900, "compositions": 3}, is_chat=True),
    Tenant("soak-narrow", {"concurrent_requests": 2, "compositions": 2}, num_clients=4),
    Tenant("soak-short", {"max_tokens": 24, "adapters": 200, "compositions": 2}, is_chat=True),
)


@dataclass(frozen=True)
class Adapter:
    """An adapter of the fleet."""

    number: int
    tenant: Tenant

    @property
    def name(self) -> str:
        """Return its name within its tenant."""
        return f"a{self.number}"

    @property
    def subject(self) -> str:
        """Return its whole name, `tenant/name`."""
        return f"{self.tenant.name}/{self.name}"

    @property
    def is_steady(self) -> bool:
        """Return whether its version stays the same during the soak."""
        return self.number % CHANGES_EVERY != 3


@dataclass(frozen=True)
class Sum:
    """A composition that requests name: two steady adapters of a tenant, with weights."""

    first: Adapter
    second: Adapter

    @property
    def model(self) -> str:
        """Return the `model` of its requests."""
        return f"{self.first.name}*0.7+{self.second.name}*0.3"

    @property
    def content(self) -> str:
        """Return what its weights are known by."""
        return f"{self.first.number}*0.7+{self.second.number}*0.3"


@dataclass(frozen=True)
class Fleet:
    """As many adapters as the soak is to have."""

    size: int

    @cached_property
    def adapters(self) -> tuple[Adapter, ...]:
        """Return all adapters, the most popular first. Tenants take turns."""
        return tuple(Adapter(n, TENANTS[n % len(TENANTS)]) for n in range(self.size))

    def of(self, tenant: Tenant) -> list[Adapter]:
        """Return a tenant's adapters, the most popular first."""
        return [adapter for adapter in self.adapters if adapter.tenant == tenant]

    def changing(self) -> list[Adapter]:
        """Return the adapters that get new versions."""
        return [adapter for adapter in self.adapters if not adapter.is_steady]

    def sums(self, tenant: Tenant) -> list[Sum]:
        """Return the compositions that a tenant's requests name: two, if it has the adapters."""
        steady = [adapter for adapter in self.of(tenant) if adapter.is_steady][:4]
        return [Sum(*pair) for pair in zip(steady[::2], steady[1::2], strict=False)]

    def next_content(self, content: int) -> int:
        """Return the content of an adapter's next version: another adapter's of the same tenant."""
        step = len(TENANTS) * max(1, self.size // len(TENANTS) // 2)
        return (content + step) % self.size


def popularity(count: int) -> list[float]:
    """Return the weights of Zipf's law."""
    return [1 / rank**ZIPF_EXPONENT for rank in range(1, count + 1)]
