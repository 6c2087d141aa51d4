"""The server that a measurement asks, through the load tester's own parts."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loadtest.drive.admin import Admin
from loadtest.drive.http_client import HttpClient
from loadtest.drive.request import RequestSender, make_call
from loadtest.errors import LoadTestError
from loadtest.outcome.request_outcome import Outcome
from loadtest.plan.scenario import Limits
from loadtest.plan.schedule import DEFAULT_TENANT

PATIENT = Limits(stall_seconds=600, request_seconds=600)
SMALLEST_VOCABULARY = 30_000


@dataclass(frozen=True)
class Generation:
    """One request: the model to ask, a prompt of token ids, and how many tokens to generate."""

    model: str
    prompt: list[int]
    num_tokens: int

    def body(self) -> dict[str, Any]:
        """Return the request's JSON. The answer is greedy and has exactly `num_tokens` tokens."""
        return {
            "model": self.model,
            "prompt": self.prompt,
            "max_tokens": self.num_tokens,
            "ignore_eos": True,
            "temperature": 0,
        }


def random_prompt(rng: np.random.Generator, length: int) -> list[int]:
    """Return random token ids, so that no prefix is cached. The lowest ids are often special."""
    return [int(token) for token in rng.integers(1000, SMALLEST_VOCABULARY, length)]


@dataclass(frozen=True)
class MeasuredServer:
    """One server, asked with one key. Adapters are the default tenant's."""

    key: str
    client: HttpClient
    admin: Admin
    sender: RequestSender

    @classmethod
    @contextlib.asynccontextmanager
    async def connect(cls, url: str, key: str) -> AsyncIterator[MeasuredServer]:
        """Connect on first use. The clock of all outcomes starts now."""
        async with HttpClient.connect(url, key) as client, RequestSender(url, PATIENT) as sender:
            yield cls(key, client, Admin(client), sender)

    async def register(self, name: str, files: Path) -> int:
        """Upload a version and make it the live one. Returns its number.

        Raises:
            LoadTestError: the server refuses it.
        """
        return await self.admin.register(DEFAULT_TENANT, name, files, promote=True)

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        """Send JSON. Returns the answer's.

        Raises:
            LoadTestError: the server doesn't answer, or refuses the request.
        """
        return await self.client.json("POST", path, json=body)

    async def generate(self, request: Generation) -> None:
        """Generate an answer that comes in one piece.

        Raises:
            LoadTestError: the request fails, or the answer has another length.
        """
        usage = (await self.post("/v1/completions", request.body()))["usage"]
        if usage["completion_tokens"] != request.num_tokens:
            raise LoadTestError(f"{request.num_tokens} tokens asked, {usage} generated")

    async def prompt_logprobs(
        self, model: str, tokens: list[int], num_likeliest: int
    ) -> list[dict[str, dict[str, Any]]]:
        """Read a text by a model. Returns an entry for each token after the first.

        An entry has the `logprob` and `rank` of that token and of the likeliest ones, by token id.

        Raises:
            LoadTestError: the request fails.
        """
        body = Generation(model, tokens, 1).body() | {"prompt_logprobs": num_likeliest}
        answer = await self.post("/v1/completions", body)
        return list(answer["choices"][0]["prompt_logprobs"][1:])

    async def seconds_of(self, requests: list[Generation]) -> float:
        """Send these requests at once. Returns the seconds until all of them are answered.

        Raises:
            LoadTestError: one fails.
        """
        start = time.perf_counter()
        await asyncio.gather(*(self.generate(request) for request in requests))
        return time.perf_counter() - start

    async def stream(self, request: Generation) -> Outcome:
        """Stream an answer. Returns what came, with the ids of its tokens and their times.

        Raises:
            LoadTestError: the request fails, two versions answer it, or the answer has another
                length.
        """
        body = request.body() | {
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
        }
        now = self.sender.now()
        outcome = Outcome(DEFAULT_TENANT, request.model, now, now, now, request.num_tokens)
        await self.sender.send(make_call("/v1/completions", body, self.key), outcome)
        if not outcome.ok:
            raise LoadTestError(f"{request.model}: {outcome.status}: {outcome.detail}")
        if outcome.is_mixed:
            raise LoadTestError(
                f"{request.model}: several versions answered, last {outcome.version}"
            )
        if len(outcome.token_ids) != request.num_tokens:
            got = f"{len(outcome.token_ids)} came"
            raise LoadTestError(f"{request.model}: {request.num_tokens} tokens asked, {got}")
        return outcome
