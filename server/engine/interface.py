"""What the server asks of an engine.

It imports nothing of vLLM, so fast tests can use a fake engine.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fastapi import Request
from fastapi.responses import Response
from pydantic import BaseModel
from starlette.datastructures import State

from adapters_registry.records.catalog import VersionRecord


class EngineState(enum.StrEnum):
    """State of the engine. It answers requests only in `READY`."""

    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    FAILED = "failed"
    STOPPED = "stopped"


class EngineFailed(Exception):
    """The engine can't be started, or died more often than the settings allow."""


Handler = Callable[[Any, Request, VersionRecord | None], Awaitable[Response]]
"""Answers a parsed body, with the version that the request holds a lease on, or the base (None)."""


@dataclass(frozen=True)
class Endpoint:
    """One route of OpenAI's or Anthropic's API."""

    body: type[BaseModel]
    """Type of the request's body, for the OpenAPI document."""
    parse: Callable[[dict[str, Any]], Any]
    """Turns a decoded JSON object into a `body`.

    Raises pydantic's `ValidationError` or an `APIError`. It stops at the first error, so a long
    list of bad items costs as much as one bad item."""
    handler: Handler
    generates: bool = True
    """Whether the route runs the model. If not, the adapter needn't be in the engine."""
    needs_model: bool = True
    """Whether the body has to name a model. If not, the base is meant."""
    answer: type[BaseModel] | None = None
    """Type of the answer that isn't a stream, for the OpenAPI document, where it is known."""


@dataclass(frozen=True)
class ProbeAnswer:
    """The answer of the base or a version to a probe, sampled greedily."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Log-probabilities of the prompt's tokens from the second on, then of the answer's tokens."""
    ended: bool
    """Whether the answer ended with a stop token, before it had `max_tokens` tokens."""


@dataclass(frozen=True)
class EngineContents:
    """The version ids that the engine reports to hold."""

    slots: list[int]
    host: list[int]
    """Versions in host memory, including those that are in slots."""


class Engine(Protocol):
    """A base in memory that answers requests with any of the adapters loaded into it."""

    state: EngineState
    max_running: int
    """How many sequences the server gives it at a time."""
    longest_prompt_characters: int | None
    """A prompt with more characters is too long for the context. None if the bound isn't known."""
    prefill_tokens: int
    """Prompt tokens of one tenant that a step should compute at most while others are served."""
    generation: int
    """Number of starts. Adapters that were loaded before the last start are gone."""
    app_state: State
    """State of the FastAPI app, which vLLM's handlers read."""
    endpoints: Mapping[str, Endpoint]

    def require_ready(self) -> None:
        """Raise `server.errors.Unavailable` if the engine can't answer requests now."""

    async def require_progress(self) -> None:
        """Raise `server.errors.Unavailable` if the engine makes no progress.

        If it computed nothing lately, because nobody asked, it is asked for one token. High load
        alone is no reason to fail.
        """

    async def probe(self) -> None:
        """Generate one token. Raises `server.errors.Unavailable` if that fails."""

    async def prepare(self, version: VersionRecord, path: Path) -> None:
        """Read a version's weights into the engine's host memory, while running streams go on.

        Raises:
            NotLoadable: (of `server.errors`) the engine can't read them, or refuses them.
            Unavailable: the engine doesn't run.
        """

    async def resident(self) -> EngineContents:
        """Return what is in slots and host memory.

        Raises:
            Unavailable: the engine doesn't run.
        """

    async def install(
        self, version: VersionRecord, keep: Callable[[], Iterable[int]] = tuple
    ) -> None:
        """Give a prepared version a free slot, or the slot of a version that no request uses.

        Waits until there is one. Each time it looks for a slot, it calls `keep`, which returns the
        ids of the versions whose slots must not be taken. An exception from `keep` ends the wait.
        A version that loses its slot stays in host memory.

        Raises:
            Unavailable: the engine isn't ready, or the version isn't prepared.
        """

    async def evict(self, version: VersionRecord) -> None:
        """Wait until no request in the engine uses a version, then free its slot and host memory.

        Does nothing if the engine doesn't run.
        """

    async def abort(self, version: VersionRecord) -> None:
        """End the requests that run on a version. Does nothing if the engine doesn't run."""

    async def ask(
        self, text: str, max_tokens: int, version: VersionRecord | None, path: Path | None
    ) -> ProbeAnswer:
        """Have the base, or a loaded version, answer a probe.

        Raises:
            Unavailable: the engine can't answer.
        """


class SupervisedEngine(Engine, Protocol):
    """An engine together with what keeps it up."""

    async def run(self, on_ready: Callable[[], None]) -> None:
        """Start the engine and keep it up until cancelled. Calls `on_ready` after each start.

        Raises:
            EngineFailed: (of `server.errors`) it can't be started, or died too often.
        """

    async def stop(self) -> None:
        """Stop the engine and every process that it started."""
