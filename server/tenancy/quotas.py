"""Quotas of tenants: rates of requests and tokens, requests at a time, choices, lengths of answers.

Rates follow the generic cell rate algorithm (ITU-T I.371): a minute's worth may be taken at once,
and is paid back evenly. A request's tokens are reserved when it enters, by what it asks for, and
the difference to what it took is settled when it leaves. So what is used on average never exceeds
the quota, however many requests run at once.

Pure: `now` (seconds, of a clock that never goes back) is an argument. Each server counts its own.
"""

from __future__ import annotations

import math
import random
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

from adapters_registry.records.tenants import Quota
from server.errors import InvalidRequest, NeverFits, OverQuota
from server.tenancy.demand import Demand, limit_answer_to

MINUTE_SECONDS = 60.0
FIRST_ANSWER_TOKENS = 256
"""What an answer of unknown length reserves before the tenant has had one."""
NUM_REMEMBERED = 32
"""Means are taken over about so many requests."""
MAX_TENANTS = 1000
"""Beyond so many, tenants that use nothing now are forgotten."""
MAX_RETRY_AFTER_SECONDS = 60


@dataclass
class Rate:
    """An amount a minute."""

    paid_at: float = -math.inf
    """When everything that was taken is paid back."""

    def take(self, amount: float, limit: int, now: float) -> None:
        """Book an amount, also more than there is. A negative amount is given back."""
        self.paid_at = max(self.paid_at, now) + amount * MINUTE_SECONDS / limit

    def left(self, limit: int, now: float) -> int:
        """Return how much may be taken now: below zero while there is debt."""
        return math.floor(limit - max(0.0, self.paid_at - now) * limit / MINUTE_SECONDS + 1e-6)

    def wait_seconds(self, amount: float, limit: int, now: float) -> float:
        """Return how long to wait until an amount may be taken, if nothing else is."""
        needed = self.paid_at + (amount / limit - 1) * MINUTE_SECONDS
        return max(0.0, needed - now)

    def reset_seconds(self, now: float) -> float:
        """Return how long it takes until the whole limit may be taken again."""
        return max(0.0, self.paid_at - now)


@dataclass
class _Use:
    requests: Rate = field(default_factory=Rate)
    tokens: Rate = field(default_factory=Rate)
    running: int = 0
    mean_answer_tokens: float = FIRST_ANSWER_TOKENS
    """Of one choice."""
    mean_seconds: float = 1.0
    """From entering to leaving."""

    def is_idle(self, now: float) -> bool:
        """Say whether nothing would be lost by forgetting it."""
        return not self.running and max(self.requests.paid_at, self.tokens.paid_at) <= now


@dataclass(frozen=True)
class Reservation:
    """What a request holds of its tenant's quota, from `enter` to `leave`."""

    tenant: str
    quota: Quota
    choices: int
    tokens: int
    entered_at: float


class Quotas:
    """What tenants use of their quotas, by the tenants' ids."""

    def __init__(self, spread: Callable[[], float] = random.random) -> None:
        """`spread`: numbers from 0 to 1, so that refused clients don't all return at once."""
        self._uses: OrderedDict[str, _Use] = OrderedDict()
        self._spread = spread

    def enter(self, tenant: str, quota: Quota, demand: Demand, now: float) -> Reservation:
        """Begin a request and reserve its tokens; `leave` ends it. A refusal counts nowhere.

        Raises:
            OverQuota: the request has to wait.
            NeverFits: the tokens that it asks for are more than a minute's.
        """
        use = self._use_of(tenant, now)
        tokens = self._tokens_to_reserve(tenant, quota, demand, now)
        if quota.concurrent_requests is not None and use.running >= quota.concurrent_requests:
            what = f"{quota.concurrent_requests} requests at a time"
            wait = min(use.mean_seconds / 2, MAX_RETRY_AFTER_SECONDS)
            self._refuse(what, wait, tenant, quota, now)
        for rate, amount, limit, unit in (
            (use.requests, 1, quota.requests_per_minute, "requests"),
            (use.tokens, tokens, quota.tokens_per_minute, "tokens"),
        ):
            if limit is not None and (wait := rate.wait_seconds(amount, limit, now)) > 1e-6:
                self._refuse(f"{limit} {unit} a minute", wait, tenant, quota, now)
        use.running += 1
        if quota.requests_per_minute is not None:
            use.requests.take(1, quota.requests_per_minute, now)
        if quota.tokens_per_minute is not None:
            use.tokens.take(tokens, quota.tokens_per_minute, now)
        return Reservation(tenant, quota, demand.choices, tokens, now)

    def leave(
        self, reservation: Reservation, input_tokens: int, output_tokens: int, now: float
    ) -> None:
        """End a request: what it took is booked in place of what it had reserved."""
        use = self._uses[reservation.tenant]
        use.running -= 1
        if reservation.quota.tokens_per_minute is not None:
            difference = input_tokens + output_tokens - reservation.tokens
            use.tokens.take(difference, reservation.quota.tokens_per_minute, now)
        if output_tokens:
            answer_tokens = output_tokens / reservation.choices
            use.mean_answer_tokens += (answer_tokens - use.mean_answer_tokens) / NUM_REMEMBERED
        seconds = now - reservation.entered_at
        use.mean_seconds += (seconds - use.mean_seconds) / NUM_REMEMBERED

    def headers(self, tenant: str, quota: Quota, now: float) -> dict[str, str]:
        """Return the headers by which OpenAI's clients learn of the rates; reservations count."""
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

    def _use_of(self, tenant: str, now: float) -> _Use:
        use = self._uses.setdefault(tenant, _Use())
        self._uses.move_to_end(tenant)
        while len(self._uses) > MAX_TENANTS:
            oldest = next(iter(self._uses))
            if not self._uses[oldest].is_idle(now):
                break
            del self._uses[oldest]
        return use

    def _tokens_to_reserve(self, tenant: str, quota: Quota, demand: Demand, now: float) -> int:
        limit = quota.tokens_per_minute
        if limit is None:
            return 0
        if demand.answer_tokens is None:
            answers = demand.choices * math.ceil(self._uses[tenant].mean_answer_tokens)
        elif (answers := demand.choices * demand.answer_tokens) > limit:
            raise NeverFits(
                f"the request asks for {answers} tokens of answers, and this tenant may "
                f"have {limit} tokens a minute: ask for fewer or shorter answers",
                rate_headers=self.headers(tenant, quota, now),
                param="max_tokens",
            )
        return min(limit, demand.prompt_tokens + answers)

    def _refuse(
        self, what: str, wait_seconds: float, tenant: str, quota: Quota, now: float
    ) -> NoReturn:
        raise OverQuota(
            f"this tenant may have {what}: wait, or have its quota raised",
            retry_after_seconds=math.ceil(wait_seconds * (1 + self._spread() / 2)),
            rate_headers=self.headers(tenant, quota, now),
        )


def limit_choices(demand: Demand, quota: Quota, max_choices: int) -> None:
    """Refuse more answers than one request may ask for.

    Args:
        max_choices: for all prompts of a request together, where the quota says nothing less.

    Raises:
        InvalidRequest: it asks for more.
    """
    if quota.choices is not None:
        max_choices = min(max_choices, quota.choices)
    if demand.choices_per_prompt > max_choices:
        raise InvalidRequest(f"n may be at most {max_choices}", param="n")
    if demand.choices > max_choices:
        raise InvalidRequest(
            f"a request may ask for {max_choices} answers, and this one has "
            f"{demand.num_prompts} prompts with {demand.choices_per_prompt} each",
            param="prompt",
        )


def limit_answer(request: Any, max_tokens: int | None, choices: int = 1) -> None:
    """Keep the answers of a request, all choices together, to a tenant's longest.

    A request that doesn't say how long they may be gets as much as there is.

    Raises:
        InvalidRequest: it asks for more.
    """
    if max_tokens is None:
        return
    most = max_tokens // choices
    if not most:
        raise InvalidRequest(f"n may be at most {max_tokens} for this tenant", param="n")
    answers = f", and {choices} answers share it" if choices > 1 else ""
    limit_answer_to(
        request, most, lambda name: f"{name} may be at most {max_tokens} for this tenant{answers}"
    )
