"""The server under test, spoken to over HTTP."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import numpy as np

from loadtest.errors import LoadTestError as LoadTestError

TIMEOUT_SECONDS = 600
SMALLEST_VOCABULARY = 30_000


@dataclass(frozen=True)
class Generation:
    """One request: the model asked, a prompt of token ids, and how many tokens to generate."""

    model: str
    prompt: list[int]
    num_tokens: int


def random_prompt(rng: np.random.Generator, length: int) -> list[int]:
    """Fresh random tokens: no prefix is cached. The lowest ids are often special: left out."""
    return [int(token) for token in rng.integers(1000, SMALLEST_VOCABULARY, length)]


@dataclass(frozen=True)
class ChatAnswer:
    """A chat answer: its text, and the tokens of prompt and answer."""

    text: str
    prompt: list[int]
    tokens: list[int]


@dataclass
class Streamed:
    """A streamed answer: who gave it, and when its tokens came, in seconds of one clock."""

    model: str
    """The version that answered, or the base."""
    tier: str | None
    """Where the request found the adapter; None for the base."""
    prompt: tuple[int, ...]
    asked_at: float
    answered_at: float
    """When the headers came."""
    tokens: list[int] = field(default_factory=list)
    arrivals: list[float] = field(default_factory=list)
    """One for each token; tokens that come together have the same."""

    @property
    def first_token_seconds(self) -> float:
        """From the request to the first token."""
        return self.arrivals[0] - self.asked_at


class Client:
    """Sends requests, and registers adapters, with one key."""

    def __init__(self, url: str, key: str) -> None:
        """Connect on first use."""
        self._http = httpx.AsyncClient(
            base_url=url,
            headers={"Authorization": f"Bearer {key}"},
            timeout=TIMEOUT_SECONDS,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
        )

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._http.aclose()

    async def base_name(self) -> str:
        """The name under which the server serves its base."""
        models = (await self._send("GET", "/v1/models")).json()["data"]
        return str(next(model["id"] for model in models if not model.get("parent")))

    async def has_adapter(self, name: str) -> bool:
        """Whether the default tenant has an adapter of this name."""
        return (await self._http.get(f"/admin/adapters/default/{name}")).status_code == 200

    async def adapter_names(self) -> set[str]:
        """The names of the default tenant's adapters."""
        names: set[str] = set()
        after: str | None = ""
        while after is not None:
            parameters = {"tenant": "default", "limit": 1000, "after": after}
            page = (await self._send("GET", "/admin/adapters", params=parameters)).json()
            names |= {adapter["name"] for adapter in page["data"]}
            after = page["next"]
        return names

    async def register(self, name: str, directory: Path) -> int:
        """Upload an adapter directory, wait until it is accepted; the version's number."""
        files = [("files", (file.name, file.read_bytes())) for file in sorted(directory.iterdir())]
        form = {"name": name, "promote": "true"}
        answer = await self._send("POST", "/admin/adapters?wait=true", data=form, files=files)
        return int(answer.json()["version"])

    async def promote(self, name: str, version: int) -> None:
        """Point the adapter's `live` to a version."""
        path = f"/admin/adapters/default/{name}/aliases/live"
        await self._send("PUT", path, json={"targets": [{"version": version}]})

    async def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's series that have these labels; 0 if there are none."""
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        lines = (await self._send("GET", "/metrics")).text.splitlines()
        series = (
            line.rsplit(" ", 1) for line in lines if line.startswith((f"{name}{{", f"{name} "))
        )
        return sum(float(value) for key, value in series if all(w in key for w in wanted))

    async def generate(self, request: Generation) -> int:
        """Have exactly as many tokens generated as asked; return their number."""
        body = {
            "model": request.model,
            "prompt": request.prompt,
            "max_tokens": request.num_tokens,
            "ignore_eos": True,
            "temperature": 0,
        }
        usage = (await self._send("POST", "/v1/completions", json=body)).json()["usage"]
        if usage["completion_tokens"] != request.num_tokens:
            raise LoadTestError(f"{request.num_tokens} tokens asked, {usage} generated")
        return int(usage["completion_tokens"])

    async def stream(self, request: Generation) -> Streamed:
        """Have exactly as many tokens streamed as asked."""
        body = {
            "model": request.model,
            "prompt": request.prompt,
            "max_tokens": request.num_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "return_token_ids": True,
        }
        path, asked_at = "/v1/completions", time.perf_counter()
        try:
            async with self._http.stream("POST", path, json=body) as response:
                if response.is_error:
                    await response.aread()
                    raise _refused("POST", path, response)
                tier = response.headers.get("x-adapter-tier")
                now = time.perf_counter()
                answer = Streamed("", tier, tuple(request.prompt), asked_at, now)
                async for line in response.aiter_lines():
                    _take(answer, line)
        except httpx.HTTPError as error:
            raise LoadTestError(f"POST {path}: {error or type(error).__name__}") from error
        if len(answer.tokens) != request.num_tokens:
            got = f"{len(answer.tokens)} came"
            raise LoadTestError(f"{request.model}: {request.num_tokens} tokens asked, {got}")
        return answer

    async def time(self, requests: list[Generation]) -> float:
        """Seconds until all of these, sent at once, are answered."""
        start = time.perf_counter()
        await asyncio.gather(*(self.generate(request) for request in requests))
        return time.perf_counter() - start

    async def chat(self, model: str, question: str, max_tokens: int) -> ChatAnswer:
        """The greedy answer to one question."""
        body = {
            "model": model,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": max_tokens,
            "temperature": 0,
            "return_token_ids": True,
        }
        answer = (await self._send("POST", "/v1/chat/completions", json=body)).json()
        choice = answer["choices"][0]
        text = (choice["message"]["content"] or "").strip()
        return ChatAnswer(text, answer["prompt_token_ids"], choice["token_ids"])

    async def ranks(self, model: str, prompt: list[int]) -> list[int]:
        """For each token after the first: how many tokens the model likes at least as well."""
        entries = await self._prompt_logprobs(model, prompt, 0)
        return [entry[str(token)]["rank"] for token, entry in zip(prompt[1:], entries, strict=True)]

    async def shortfalls(self, model: str, prompt: list[int]) -> list[float]:
        """For each token after the first: its log-probability below that of the likeliest."""
        entries = await self._prompt_logprobs(model, prompt, 1)
        return [
            max(choice["logprob"] for choice in entry.values()) - entry[str(token)]["logprob"]
            for token, entry in zip(prompt[1:], entries, strict=True)
        ]

    async def _prompt_logprobs(self, model: str, prompt: list[int], num_likeliest: int) -> Any:
        body = {
            "model": model,
            "prompt": prompt,
            "max_tokens": 1,
            "temperature": 0,
            "prompt_logprobs": num_likeliest,
        }
        answer = (await self._send("POST", "/v1/completions", json=body)).json()
        return answer["choices"][0]["prompt_logprobs"][1:]

    async def _send(self, method: str, path: str, **arguments: object) -> httpx.Response:
        try:
            response = await self._http.request(method, path, **arguments)  # type: ignore[arg-type]
        except httpx.HTTPError as error:
            raise LoadTestError(f"{method} {path}: {error or type(error).__name__}") from error
        if response.is_error:
            raise _refused(method, path, response)
        return response


def _refused(method: str, path: str, response: httpx.Response) -> LoadTestError:
    return LoadTestError(f"{method} {path}: {response.status_code} {response.text[:300]}")


def _take(answer: Streamed, line: str) -> None:
    """Note what a line of a stream says.

    Raises:
        LoadTestError: it is an error, or names another model than the lines before.
    """
    data = line.removeprefix("data: ")
    if data == line or data == "[DONE]":
        return
    event = json.loads(data)
    if "error" in event:
        raise LoadTestError(f"in a stream: {event['error']}")
    if event["model"] != (answer.model or event["model"]):
        raise LoadTestError(f"a stream of {answer.model} went on as {event['model']}")
    answer.model = event["model"]
    for choice in event["choices"]:
        tokens = choice.get("token_ids") or []
        answer.tokens += tokens
        answer.arrivals += [time.perf_counter()] * len(tokens)
