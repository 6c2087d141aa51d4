"""Before the soak: each golden answer is taken from one adapter alone.

The answers are kept in the folder of the soak, so the next soak there begins with what it finds.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from loadtest.errors import LoadTestError
from loadtest.outcome.golden import GoldenAnswer, distance
from loadtest.outcome.streams import Token
from tests.soak.fleet import TENANTS, Adapter, Fleet, Tenant
from tests.soak.questions import GOLDEN_TOKENS, PROMPTS
from tests.soak.site import Site
from tests.soak.truth import Question, Truth
from tests.soak.weights import RECIPE

SAY_SECONDS = 20
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
            await self._find(tenant)
        self._read()
        wanted = [question for question in self.questions() if not self._is_known(question)]
        await self._learn_all(wanted)
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

    async def _learn_all(self, wanted: list[Question]) -> None:
        """Ask one adapter after the other, and say how far it is now and then."""
        said = time.monotonic()
        for number, asked in enumerate(wanted, 1):
            self.truth.golden.record(asked.content, asked.prompt, [await self._answer(asked)])
            if number == len(wanted) or time.monotonic() - said > SAY_SECONDS:
                said = time.monotonic()
                self.say(f"golden answers: {number} of {len(wanted)}")
                self._write()

    async def _find(self, tenant: Tenant) -> None:
        """Learn which version each of a tenant's adapters has."""
        live = await self.site.live_versions(tenant)
        for adapter in self.fleet.of(tenant):
            number = live[adapter.subject]
            with self.truth.timeline.changing(adapter.subject, number):
                self.truth.contents[f"{adapter.subject}@{number}"] = str(adapter.number)

    def _is_known(self, asked: Question) -> bool:
        return asked.prompt in self.truth.golden.golden.get(asked.content, {})

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
        return [RECIPE, *PROMPTS, GOLDEN_TOKENS]
