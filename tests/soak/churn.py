"""The operator: versions come, are tried as canaries, are promoted or not, and go."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from loadtest.errors import LoadTestError
from tests.soak.fleet import PASSING_CONTENTS, TENANTS, Adapter, Fleet, Tenant
from tests.soak.golden import GOLDEN_TOKENS
from tests.soak.load import Load
from tests.soak.site import Site
from tests.soak.tally import Tally
from tests.soak.truth import Question, Truth
from tests.soak.weights import files_of

OPERATORS = 2
PROMOTED_SHARE = 0.7
CANARY_PERCENT = 25
CANARY_SECONDS, PAUSE_SECONDS = 3.0, 1.0
REPETITION = "it answers every probe by repeating itself"
"""What the gate says of random weights now and then, rightly. Nothing has changed then."""
PASSING_NAMES = 10
"""So many names are taken by adapters that are registered and soon deleted."""


@dataclass
class Churn:
    """Changes adapters one after the other for as long as the clients ask."""

    site: Site
    fleet: Fleet
    truth: Truth
    tally: Tally
    load: Load
    rng: random.Random
    _passing: Iterator[int] = field(init=False)

    def __post_init__(self) -> None:
        self._passing = itertools.cycle(PASSING_CONTENTS)

    async def run(self, is_over: Callable[[], bool]) -> None:
        """Change things until it is over. A change that has begun is carried out."""
        changing = self.fleet.changing()
        async with asyncio.TaskGroup() as group:
            for number in range(OPERATORS):
                group.create_task(self._operate(changing[number::OPERATORS], is_over))

    async def _operate(self, adapters: list[Adapter], is_over: Callable[[], bool]) -> None:
        while not is_over():
            adapter = self.rng.choice(adapters) if adapters else None
            try:
                if adapter:
                    await self._replace(adapter)
                await self._pass_by()
            except LoadTestError as error:
                if REPETITION in str(error):
                    self._note("refusal by the gate")
                    continue
                self.tally.failed_changes.append(str(error))
                if adapter in adapters:  # nobody knows what it means now
                    adapters.remove(adapter)
            await asyncio.sleep(PAUSE_SECONDS)

    async def _replace(self, adapter: Adapter) -> None:
        """Register a version, serve it as a canary, and promote it or roll it back."""
        site, timeline, subject = self.site, self.truth.timeline, adapter.subject
        (old,) = timeline.meant(subject, site.sender.now(), site.sender.now())
        content = self.fleet.next_content(int(self.truth.contents[f"{subject}@{old}"]))
        new = await self._register(subject, content, promote=False)
        await self._ask(adapter.tenant, subject, f"{adapter.name}@{new}", new)
        with timeline.changing(subject, old, new):
            await site.point(subject, {old: 100 - CANARY_PERCENT, new: CANARY_PERCENT})
        self._note("canary")
        await asyncio.sleep(CANARY_SECONDS)
        if self.rng.random() < PROMOTED_SHARE:
            with timeline.changing(subject, new):
                await site.point(subject, {new: 100})
            self._note("promotion")
            kept, leaving = new, old
        else:
            with timeline.changing(subject, old):
                await site.change("POST", subject, "/rollback")
            self._note("rollback")
            kept, leaving = old, new
        await self._ask(adapter.tenant, subject, adapter.name)
        await site.change("DELETE", subject, f"/versions/{leaving}")
        self._note("retirement")
        await self._pin(adapter, kept)

    async def _pin(self, adapter: Adapter, number: int) -> None:
        path = f"/versions/{number}/pin"
        await self.site.change("PUT", adapter.subject, path)
        await self._ask(adapter.tenant, adapter.subject, adapter.name)
        await self.site.change("DELETE", adapter.subject, path)
        self._note("pin")

    async def _pass_by(self) -> None:
        """Register an adapter of new weights, ask it, and delete it: then it must be unknown."""
        content, tenant = next(self._passing), self.rng.choice(TENANTS)
        name = f"passing{content % PASSING_NAMES}"
        subject = f"{tenant.name}/{name}"
        number = await self._register(subject, content, promote=True)
        with self.truth.timeline.changing(subject, number):
            pass
        asked = await self._ask(tenant, subject, name)
        with self.truth.timeline.changing(subject):
            await self.site.change("DELETE", subject, "?force=true")
        self._note("deletion")
        outcome = await self.site.ask(asked)
        refused = outcome.status == "http_429" and tenant.promises(outcome.detail)
        if not refused and outcome.status != "http_404":
            self.tally.wrong.append(f"{subject} was deleted, and a request got {outcome.status}")

    async def _register(self, subject: str, content: int, *, promote: bool) -> int:
        files = await asyncio.to_thread(files_of, content)
        number = await self.site.register(subject, files, content, promote=promote)
        self.truth.contents[f"{subject}@{number}"] = str(content)
        self._note("registration")
        return number

    async def _ask(
        self, tenant: Tenant, subject: str, model: str, number: int | None = None
    ) -> Question:
        """Ask right after a change. The answer is judged like any other."""
        asked = Question(
            tenant.name, model, tenant.is_chat, GOLDEN_TOKENS, subject=subject, number=number
        )
        self.load.judge(tenant, asked, await self.site.ask(asked))
        return asked

    def _note(self, kind: str) -> None:
        self.tally.changes[kind] += 1
