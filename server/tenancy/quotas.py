"""Quotas of tenants: how many requests and tokens a minute, how many at a time, how long answers.

Rates follow the generic cell rate algorithm (ITU-T I.371): a minute's worth may come at once, and
is paid back evenly. A request's tokens are known when it has ended, so they may leave a debt, and
the next request waits until it is paid: what is used on average never exceeds the quota. (Libraries
for limits refuse such a cost instead of booking it.)

Pure: `now` (seconds, of a clock that never goes back) is an argument. Each server counts its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from adapters_registry.records.tenants import Quota
from server.errors import InvalidRequest, OverQuota

MINUTE_SECONDS = 60.0

_LENGTHS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
"""What the APIs call the longest answer; the first that a body has is set where none is given."""


@dataclass
class Rate:
    """A rate of so much a minute."""

    paid_at: float = -math.inf
    """When all that was taken is paid back."""

    def take(self, amount: float, limit: int, now: float) -> None:
        """Book an amount, whether it is there or not."""
        self.paid_at = max(self.paid_at, now) + amount * MINUTE_SECONDS / limit

    def left(self, limit: int, now: float) -> int:
        """How much may be taken now; below zero while there is debt."""
        return math.floor(limit - max(0.0, self.paid_at - now) * limit / MINUTE_SECONDS + 1e-6)

    def wait_seconds(self, amount: float, limit: int, now: float) -> float:
        """Until so much may be taken, if nothing else is."""
        needed = self.paid_at + (amount / limit - 1) * MINUTE_SECONDS
        return max(0.0, needed - now)

    def reset_seconds(self, now: float) -> float:
        """Until all of the limit is there again."""
        return max(0.0, self.paid_at - now)


@dataclass
class _Use:
    requests: Rate = field(default_factory=Rate)
    tokens: Rate = field(default_factory=Rate)
    running: int = 0


class Quotas:
    """What tenants use of their quotas, by the tenants' ids."""

    def __init__(self) -> None:
        self._uses: dict[str, _Use] = {}

    def enter(self, tenant: str, quota: Quota, now: float) -> None:
        """Begin a request; `leave` ends it.

        Raises:
            OverQuota: it has to wait. A refused request counts nowhere.
        """
        use = self._uses.setdefault(tenant, _Use())
        if quota.concurrent_requests is not None and use.running >= quota.concurrent_requests:
            self._refuse(f"{quota.concurrent_requests} requests at a time", 1.0, tenant, quota, now)
        for rate, limit, unit in (
            (use.requests, quota.requests_per_minute, "requests"),
            (use.tokens, quota.tokens_per_minute, "tokens"),
        ):
            if limit is not None and (wait := rate.wait_seconds(1, limit, now)) > 1e-6:
                self._refuse(f"{limit} {unit} a minute", wait, tenant, quota, now)
        use.running += 1
        if quota.requests_per_minute is not None:
            use.requests.take(1, quota.requests_per_minute, now)

    def leave(self, tenant: str, quota: Quota, tokens: int, now: float) -> None:
        """End a request that `enter` began, and settle its tokens, in and out."""
        use = self._uses[tenant]
        use.running -= 1
        if quota.tokens_per_minute is not None:
            use.tokens.take(tokens, quota.tokens_per_minute, now)

    def headers(self, tenant: str, quota: Quota, now: float) -> dict[str, str]:
        """What OpenAI's clients read of the rates."""
        use = self._uses.get(tenant, _Use())
        headers = {}
        for rate, limit, unit in (
            (use.requests, quota.requests_per_minute, "requests"),
            (use.tokens, quota.tokens_per_minute, "tokens"),
        ):
            if limit is not None:
                headers[f"x-ratelimit-limit-{unit}"] = str(limit)
                headers[f"x-ratelimit-remaining-{unit}"] = str(max(0, rate.left(limit, now)))
                headers[f"x-ratelimit-reset-{unit}"] = f"{rate.reset_seconds(now):.3f}s"
        return headers

    def _refuse(
        self, what: str, wait_seconds: float, tenant: str, quota: Quota, now: float
    ) -> None:
        raise OverQuota(
            f"this tenant may have {what}: wait, or have its quota raised",
            retry_after_seconds=math.ceil(wait_seconds),
            rate_headers=self.headers(tenant, quota, now),
        )


def limit_answer(request: Any, max_tokens: int | None) -> None:
    """Keep a parsed body's answer to a tenant's longest.

    Raises:
        InvalidRequest: it asks for a longer one.
    """
    if max_tokens is None:
        return
    names = [name for name in _LENGTHS if hasattr(request, name)]
    given = [name for name in names if getattr(request, name) is not None]
    for name in given:
        if getattr(request, name) > max_tokens:
            raise InvalidRequest(f"{name} may be at most {max_tokens} for this tenant", param=name)
    if names and not given:
        setattr(request, names[0], max_tokens)
