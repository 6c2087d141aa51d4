"""The clients: each asks one question after the other, and every answer is checked."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from loadtest.outcome.request_outcome import HUNG_UP, Outcome
from tests.soak.fleet import TENANTS, Adapter, Fleet, Sum, Tenant, popularity
from tests.soak.golden import GOLDEN_TOKENS
from tests.soak.site import Site
from tests.soak.tally import Tally
from tests.soak.truth import Question, Truth

BASE_SHARE, SUM_SHARE, VERSION_SHARE, LONG_SHARE, HANG_UP_SHARE = 0.05, 0.04, 0.06, 0.1, 0.06
LONG_TOKENS = 24
PAUSE_SECONDS = 1.0
"""How long a client waits after it was refused."""


@dataclass
class Questions:
    """Draws a tenant's questions: adapters by Zipf's law, now and then something else."""

    tenant: Tenant
    fleet: Fleet
    truth: Truth
    rng: random.Random
    _adapters: list[Adapter] = field(init=False)
    _sums: list[Sum] = field(init=False)
    _weights: list[float] = field(init=False)

    def __post_init__(self) -> None:
        self._adapters, self._sums = self.fleet.of(self.tenant), self.fleet.sums(self.tenant)
        self._weights = popularity(len(self._adapters))

    def draw(self) -> tuple[str, Question]:
        """Return a kind and a question."""
        kinds = {
            "base": BASE_SHARE,
            "composition": SUM_SHARE if self._sums else 0.0,
            "version": VERSION_SHARE,
            "adapter": 1 - BASE_SHARE - SUM_SHARE - VERSION_SHARE,
        }
        (kind,) = self.rng.choices(list(kinds), list(kinds.values()))
        if kind == "base":
            return kind, self._question("base")
        if kind == "composition":
            chosen = self.rng.choice(self._sums)
            return kind, self._question(chosen.model, content=chosen.content)
        (adapter,) = self.rng.choices(self._adapters, self._weights)
        if kind == "version" and adapter.is_steady:
            (number,) = self.truth.timeline.meant(adapter.subject, 0.0, float("inf"))
            model = f"{adapter.name}@{number}"
            return kind, self._question(model, subject=adapter.subject, number=number)
        model = self.rng.choice([adapter.name, adapter.name, adapter.subject])
        return "adapter", self._question(model, subject=adapter.subject)

    def _question(
        self, model: str, *, subject: str = "", number: int | None = None, content: str = "base"
    ) -> Question:
        rng, tokens = self.rng, self.rng.randint(2, GOLDEN_TOKENS)
        if rng.random() < LONG_SHARE:
            tokens = LONG_TOKENS
        leaves = rng.random() < HANG_UP_SHARE
        return Question(
            self.tenant.name,
            model,
            self.tenant.is_chat,
            tokens,
            rng.randint(1, tokens - 1) if leaves else None,
            subject,
            number,
            content,
        )


@dataclass(frozen=True)
class Load:
    """All clients of all tenants."""

    site: Site
    fleet: Fleet
    truth: Truth
    tally: Tally
    seed: int

    async def run(self, is_over: Callable[[], bool]) -> None:
        """Ask until it is over. Requests that have begun are answered first."""
        async with asyncio.TaskGroup() as group:
            for tenant in TENANTS:
                for number in range(tenant.num_clients):
                    seed = random.Random(f"{self.seed} {tenant.name} {number}")
                    questions = Questions(tenant, self.fleet, self.truth, seed)
                    group.create_task(self._client(questions, is_over))

    async def _client(self, questions: Questions, is_over: Callable[[], bool]) -> None:
        while not is_over():
            kind, asked = questions.draw()
            outcome = await self.site.ask(asked)
            self.tally.kinds[kind] += 1
            if not self.judge(questions.tenant, asked, outcome):
                await asyncio.sleep(PAUSE_SECONDS)

    def judge(self, tenant: Tenant, asked: Question, outcome: Outcome) -> bool:
        """Count an outcome. Returns whether there was an answer."""
        tally = self.tally
        if outcome.status == "http_429" and tenant.promises(outcome.detail):
            tally.refused[tenant.name] += 1
            return False
        tally.admitted[tenant.name] += 1
        tally.tokens[tenant.name] += outcome.tokens_in + outcome.tokens_out
        if outcome.is_error:
            tally.failed.append(f"{asked.model}: {outcome.status} {outcome.detail}")
            return False
        tally.tiers[outcome.tier or "base"] += 1
        if fault := self.truth.fault(asked, outcome):
            tally.wrong.append(": ".join(fault))
        elif outcome.status == HUNG_UP:
            tally.left += 1
        else:
            tally.right += 1
        return True
