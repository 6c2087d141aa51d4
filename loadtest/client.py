"""The server under test, spoken to over HTTP."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import httpx
import numpy as np

TIMEOUT_SECONDS = 600
SMALLEST_VOCABULARY = 30_000


class LoadTestError(Exception):
    """The server can't be measured; one line that says why."""


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
class Answer:
    """A chat answer: its text, and the tokens of prompt and answer."""

    text: str
    prompt: list[int]
    tokens: list[int]


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

    async def register(self, name: str, directory: Path) -> None:
        """Upload an adapter directory, and wait until the server has accepted it."""
        files = [("files", (file.name, file.read_bytes())) for file in sorted(directory.iterdir())]
        form = {"name": name, "promote": "true"}
        await self._send("POST", "/admin/adapters?wait=true", data=form, files=files)

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

    async def time(self, requests: list[Generation]) -> float:
        """Seconds until all of these, sent at once, are answered."""
        start = time.perf_counter()
        await asyncio.gather(*(self.generate(request) for request in requests))
        return time.perf_counter() - start

    async def chat(self, model: str, question: str, max_tokens: int) -> Answer:
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
        return Answer(text, answer["prompt_token_ids"], choice["token_ids"])

    async def ranks(self, model: str, prompt: list[int]) -> list[int]:
        """For each token after the first: how many tokens the model likes at least as well."""
        body = {
            "model": model,
            "prompt": prompt,
            "max_tokens": 1,
            "temperature": 0,
            "prompt_logprobs": 0,
        }
        answer = (await self._send("POST", "/v1/completions", json=body)).json()
        entries = answer["choices"][0]["prompt_logprobs"][1:]
        return [entry[str(token)]["rank"] for token, entry in zip(prompt[1:], entries, strict=True)]

    async def _send(self, method: str, path: str, **arguments: object) -> httpx.Response:
        try:
            response = await self._http.request(method, path, **arguments)  # type: ignore[arg-type]
        except httpx.HTTPError as error:
            raise LoadTestError(f"{method} {path}: {error or type(error).__name__}") from error
        if response.is_error:
            raise LoadTestError(f"{method} {path}: {response.status_code} {response.text[:300]}")
        return response
