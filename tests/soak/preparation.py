"""Before the soak: the fleet is registered, and each golden answer is taken from one adapter alone.

Both are kept in the folder of the soak, so the next soak there begins with what it finds.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from loadtest.errors import LoadTestError
from loadtest.outcome.golden import GoldenAnswer, distance
from loadtest.outcome.streams import Token
from tests.soak.fleet import TENANTS, Adapter, Fleet
from tests.soak.questions import GOLDEN_TOKENS, PROMPTS
from tests.soak.site import Site
from tests.soak.truth import Question, Truth
from tests.soak.weights import RECIPE, files_of

UPLOADS = 4
NUM_TOGETHER = 16
"""How many adapters are asked together, to see how much a batch changes an answer."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Preparation:
    """Brings a server to the state that a soak begins with, and learns its golden answers."""

    site: Site
    fleet: Fleet
    truth: Truth
    file: Path
    """Where golden answers are kept."""
    say: Say

    async def prepare(self) -> float:
        """Prepare the server. Returns how much a batch changed answers at most, in nats.

        Raises:
            LoadTestError: the server refuses something, or an answer fails.
        """
        for tenant in TENANTS:
            await self.site.admit(tenant)
        await self._each("registered", self.fleet.adapters, self._register, UPLOADS)
        self._read()
        wanted = [question for question in self.questions() if not self._is_known(question)]
        await self._each("golden answers", wanted, self._learn, 1)
        self._write()
        return await self._noise()

    def questions(self) -> list[Question]:
        """Return the questions whose answers are golden: one for each content and endpoint."""
        adapters = [self._question(adapter) for adapter in self.fleet.adapters]
        sums = [
            Question(tenant.name, sum_.model, tenant.is_chat, GOLDEN_TOKENS, content=sum_.content)
            for tenant in TENANTS
            for sum_ in self.fleet.sums(tenant)
        ]
        bases = [
            Question(tenant.name, "base", tenant.is_chat, GOLDEN_TOKENS) for tenant in TENANTS[1:3]
        ]
        return [*adapters, *sums, *bases]

    @staticmethod
    def _question(adapter: Adapter) -> Question:
        tenant = adapter.tenant
        return Question(
            tenant.name,
            adapter.name,
            tenant.is_chat,
            GOLDEN_TOKENS,
            subject=adapter.subject,
            content=str(adapter.number),
        )

    async def _each(
        self, what: str, items: Sequence[Any], do: Callable[[Any], Awaitable[None]], at_once: int
    ) -> None:
        """Do something with each item, some at once, and say how far it is now and then."""
        queue, done, began, said = iter(items), itertools.count(1), time.monotonic(), 0.0

        async def work() -> None:
            nonlocal said
            for item in queue:
                await do(item)
                number, seconds = next(done), time.monotonic() - began
                if number == len(items) or seconds - said > 20:
                    said = seconds
                    self.say(f"{what}: {number} of {len(items)} after {seconds:.0f} s")

        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(work())

    async def _register(self, adapter: Adapter) -> None:
        """Register an adapter with its own content, and retire what an earlier soak has left."""
        found = await self.site.adapter(adapter.subject)
        ready = {
            row["version"]: row["metadata"].get("content")
            for row in (found["versions"] if found else [])
            if row["state"] == "ready"
        }
        number = next((n for n, content in ready.items() if content == adapter.number), None)
        if number is None:
            files = await asyncio.to_thread(files_of, adapter.number)
            number = await self.site.register(
                adapter.subject, files, adapter.number, promote=True
            )
        with self.truth.timeline.changing(adapter.subject, number):
            if found and found["live"] != number:
                await self.site.point(adapter.subject, {number: 100})
        for other in ready.keys() - {number}:
            await self.site.change("DELETE", adapter.subject, f"/versions/{other}")
        self.truth.contents[f"{adapter.subject}@{number}"] = str(adapter.number)

    def _is_known(self, asked: Question) -> bool:
        return asked.prompt in self.truth.golden.golden.get(asked.content, {})

    async def _learn(self, asked: Question) -> None:
        self.truth.golden.record(asked.content, asked.prompt, [await self._answer(asked)])

    async def _answer(self, asked: Question) -> GoldenAnswer:
        outcome = await self.site.ask(asked)
        if not outcome.ok:
            raise LoadTestError(f"{asked.model}: {outcome.status} {outcome.detail}")
        return GoldenAnswer.of(outcome)

    async def _noise(self) -> float:
        """Ask some adapters together and return the largest distance from their golden answers."""
        some = [self._question(adapter) for adapter in self.fleet.adapters[:NUM_TOGETHER]]
        answers = await asyncio.gather(*map(self._answer, some))
        golden = [self.truth.golden.golden[asked.content][asked.prompt] for asked in some]
        return max(map(distance, golden, answers))

    def _read(self) -> None:
        """Take over kept answers, if they were made in the same way."""
        kept = json.loads(self.file.read_text()) if self.file.exists() else {}
        if kept.get("made") != self._made:
            return
        for content, answers in kept["answers"].items():
            for prompt, (text, tokens) in answers.items():
                answer = GoldenAnswer(text, tuple(Token(*token) for token in tokens))
                self.truth.golden.record(content, int(prompt), [answer])

    def _write(self) -> None:
        answers = {
            content: {prompt: [a.text, [astuple(t) for t in a.tokens]] for prompt, a in by.items()}
            for content, by in self.truth.golden.golden.items()
        }
        self.file.write_text(json.dumps({"made": self._made, "answers": answers}))

    @property
    def _made(self) -> list[Any]:
        return [*RECIPE, *PROMPTS, GOLDEN_TOKENS]
