"""The service tier of a request: with which weight it waits for its turn. Pure.

In each tier a tenant's prompts wait in an account of their own (`fair_queue`), so that what a
tenant does in one tier delays or hastens nothing in another.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from typing import Any

from server.errors import InvalidRequest


@dataclass(frozen=True)
class ServiceTier:
    """A tier, and the factor by which it multiplies the weight of a tenant."""

    name: str
    """OpenAI's name for it."""
    weight_factor: float

    def account_of(self, tenant: str) -> str:
        """Return the name of a tenant's account in the fair queue. No other tenant can have it."""
        return tenant if self is DEFAULT else f"{tenant}:{self.name}"


DEFAULT = ServiceTier("default", 1)
FLEX = ServiceTier("flex", 0.25)
PRIORITY = ServiceTier("priority", 4)
ON_DEMAND = {tier.name: tier for tier in (FLEX, PRIORITY)}
"""The tiers that a tenant may use if its quota allows it."""

OPENAI = {
    "auto": DEFAULT,
    "default": DEFAULT,
    "scale": DEFAULT,
    "flex": FLEX,
    "priority": PRIORITY,
    "fast": PRIORITY,
    "ultrafast": PRIORITY,
}
ANTHROPIC = {"auto": PRIORITY, "standard_only": DEFAULT}
"""What each API's values ask for. Here is no tier for scale, and none that is faster than priority.
Anthropic's `auto` takes the best tier that one may use."""


def asked_tier(body: dict[str, Any], *, is_anthropic: bool) -> ServiceTier | None:
    """Take `service_tier` out of a body. Returns what it asks for, or None if it isn't there.

    Raises:
        InvalidRequest: it isn't a value of the API.
    """
    value = body.pop("service_tier", None)
    if value is None:
        return None
    known = ANTHROPIC if is_anthropic else OPENAI
    if not isinstance(value, str) or value not in known:
        names = ", ".join(known)
        raise InvalidRequest(f"service_tier must be one of {names}", param="service_tier")
    return known[value]


def usable_tier(asked: ServiceTier | None, allowed: Container[str]) -> ServiceTier:
    """Return the tier that is used: the one that was asked for, if it is allowed, or the default.

    OpenAI documents this fallback: the answer names the tier that was really used.
    """
    return asked if asked is not None and asked.name in allowed else DEFAULT
