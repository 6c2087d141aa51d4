"""Before the soak: golden answers are computed, what fills once is filled, all adapters are asked.

The golden answers are kept in the folder of the soak, so the next soak there begins sooner.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from loadtest.errors import LoadTestError
from server.request_log.recent import MAX_RECORDS
from tests.soak.fleet import PASSING_CONTENTS, TENANTS, Adapter, Fleet
from tests.soak.golden import GOLDEN_TOKENS, GoldenAnswers
from tests.soak.questions import PROMPTS
from tests.soak.site import Site
from tests.soak.truth import BASE, Question, Truth
from tests.soak.weights import RECIPE

AT_ONCE = 16
MADE = [RECIPE, *PROMPTS, GOLDEN_TOKENS]
"""What golden answers depend on."""


def golden_answers(fleet: Fleet, file: Path, say: Callable[[str], None]) -> GoldenAnswers:
    """Return the golden answers of a fleet: those in a file, and the others, which are computed."""
    golden = GoldenAnswers()
    golden.read(file, MADE)
    wanted = {
        prompt: [content for content in contents if golden.of(content, prompt) is None]
        for prompt, contents in _contents(fleet).items()
    }
    if any(wanted.values()):
        from tests.soak.reference import Reference

        reference = Reference()
        for prompt, contents in wanted.items():
            for number, answers in enumerate(reference.answers(contents, prompt), 1):
                for content, answer in answers:
                    golden.add(content, prompt, answer)
                golden.write(file, MADE)
                say(f"golden answers: batch {number} for {len(contents)} contents is computed")
    return golden


def _contents(fleet: Fleet) -> dict[int, list[str]]:
    """Return the contents that are asked each prompt."""
    anyones = [BASE, *map(str, PASSING_CONTENTS)]
    found: dict[int, list[str]] = {0: [*anyones], 1: [*anyones]}
    for tenant in TENANTS:
        own = [str(adapter.number) for adapter in fleet.of(tenant)]
        found[int(tenant.is_chat)] += own + [each.content for each in fleet.sums(tenant)]
    return found


async def fill_recent_requests(site: Site, say: Callable[[str], None]) -> None:
    """Send as many requests as the server keeps records of.

    Otherwise its heap would grow by their records for the first 20,000 requests of the soak.
    """
    numbers = iter(range(MAX_RECORDS))
    say(f"{MAX_RECORDS:,} requests are refused, so that their records are there")

    async def ask() -> None:
        for number in numbers:
            body = {"model": f"unknown{number}", "prompt": "?", "max_tokens": 1}
            status, text = await site.http.call("POST", "/v1/completions", json=body)
            if status != 404:
                raise LoadTestError(f"an unknown model: {status} {text}")

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(ask())


async def introduce(site: Site, fleet: Fleet, truth: Truth, say: Callable[[str], None]) -> None:
    """Learn which version each adapter has, and ask each once: then its series are there.

    Raises:
        LoadTestError: an answer fails, or is wrong.
    """
    for tenant in TENANTS:
        await site.admit(tenant)
        live = await site.live_versions(tenant)
        for adapter in fleet.of(tenant):
            number = live[adapter.subject]
            truth.contents[f"{adapter.subject}@{number}"] = str(adapter.number)
            with truth.timeline.changing(adapter.subject, number):
                pass
    questions = iter([_first(adapter) for adapter in fleet.adapters])
    say(f"every adapter is asked once, {AT_ONCE} at a time")

    async def ask() -> None:
        for asked in questions:
            outcome = await site.ask(asked)
            fault = None if outcome.is_error else truth.fault(asked, outcome)
            if outcome.is_error or fault:
                raise LoadTestError(f"{asked.model}: {outcome.status} {outcome.detail} {fault}")

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(ask())


def _first(adapter: Adapter) -> Question:
    """Return a short question to an adapter."""
    tenant = adapter.tenant
    return Question(tenant.name, adapter.name, tenant.is_chat, 1, subject=adapter.subject)
