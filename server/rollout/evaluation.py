"""Answers held-out conversations with both versions, and scores the answers.

The requests are the owner's: they count towards its quota and its usage, and wait as others do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import httpx
from starlette.types import ASGIApp, Receive, Scope, Send

from adapters_registry.records.catalog import VersionRecord
from adapters_registry.records.keys import INFERENCE
from adapters_registry.registry import Registry
from adapters_registry.rollout.examples import Example, most_tokens, text_of
from adapters_registry.rollout.scores import Scores, paired_difference, score_answers
from server.auth import Caller
from server.errors import OverQuota, Unavailable

CHAT = "/v1/chat/completions"
AT_A_TIME = 2
"""So few requests, because the users' ones come first."""
TRIES, PAUSE_SECONDS = 60, 1.0
_BUSY = frozenset({OverQuota.status, Unavailable.status})

Ask = Callable[[VersionRecord, dict[str, Any]], Awaitable[httpx.Response]]
"""Sends the body of a chat request in the name of a version's owner."""


def asking(app: ASGIApp, registry: Registry) -> Ask:
    """Return what sends chat requests to an app whose requests have a caller already."""

    async def ask(version: VersionRecord, body: dict[str, Any]) -> httpx.Response:
        tenant = registry.catalog.tenants[version.tenant]
        caller = Caller(tenant.name, frozenset({INFERENCE}), tenant_id=tenant.id)

        async def in_its_name(scope: Scope, receive: Receive, send: Send) -> None:
            await app({**scope, "state": {"caller": caller}}, receive, send)

        transport = httpx.ASGITransport(in_its_name, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://judge") as client:
            return await client.post(CHAT, json=body)

    return ask


class Busy(Exception):
    """The server cannot answer the conversations now. It is no fault of a version."""


async def evaluate(
    ask: Ask,
    live: VersionRecord,
    canary: VersionRecord,
    examples: Sequence[Example],
    metric: str,
    pause_seconds: float = PAUSE_SECONDS,
) -> dict[str, Any]:
    """Return the means of both versions, and the differences with their 95 % intervals.

    The scores are those of `loraplex evaluate`, without the loss. An answer that fails is as good
    as an empty one.

    Raises:
        Busy: the server cannot answer now.
    """
    limit = asyncio.Semaphore(AT_A_TIME)
    longest = most_tokens(examples)

    async def answer(version: VersionRecord, example: Example) -> str:
        async with limit:
            return await _answer(
                ask, version, example.body(version.public_name, longest), pause_seconds
            )

    async def answers(version: VersionRecord) -> list[str]:
        return await asyncio.gather(*(answer(version, example) for example in examples))

    given = {"live": await answers(live), "canary": await answers(canary)}
    expected = [example.expected for example in examples]
    return await asyncio.to_thread(_score, given, expected, metric)


async def _answer(
    ask: Ask, version: VersionRecord, body: dict[str, Any], pause_seconds: float
) -> str:
    for _ in range(TRIES):
        response = await ask(version, body)
        if response.status_code not in _BUSY:
            break
        await asyncio.sleep(pause_seconds)
    else:
        raise Busy(f"{version.public_name} cannot answer now: {response.text[:200]}")
    if response.is_error:
        return ""
    return text_of(response.json()["choices"][0]["message"])


def _score(given: Mapping[str, list[str]], expected: list[str], metric: str) -> dict[str, Any]:
    scores = {name: Scores(score_answers(answers, expected)) for name, answers in given.items()}
    differences = {
        each: paired_difference(scores["canary"], scores["live"], each)
        for each in scores["live"].values
        if each == metric
    }
    return {
        "num_examples": len(expected),
        "live": scores["live"].summary(),
        "canary": scores["canary"].summary(),
        "differences": {name: vars(difference) for name, difference in differences.items()},
    }
