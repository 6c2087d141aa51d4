"""What the server asks of an engine. Free of vLLM, so that a fake can stand in for fast tests."""

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
    """What the engine is doing. Requests are answered in `READY` only."""

    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    FAILED = "failed"
    STOPPED = "stopped"


class EngineFailed(Exception):
    """The engine can't be started, or died more often than the settings allow."""


Handler = Callable[[Any, Request, VersionRecord | None], Awaitable[Response]]
"""Answers a parsed body with the base (None) or with the version that it holds a lease on."""


@dataclass(frozen=True)
class Endpoint:
    """One route of OpenAI's or Anthropic's API."""

    body: type[BaseModel]
    """The type of its body, for the OpenAPI document."""
    parse: Callable[[dict[str, Any]], Any]
    """Makes `body` of a decoded JSON object; raises pydantic's `ValidationError` or an `APIError`.

    It stops at the first error, so that a long list of bad items costs no more than one."""
    handler: Handler
    generates: bool = True
    """Whether it runs the model: if not, it needs no adapter in the engine."""


@dataclass(frozen=True)
class ProbeAnswer:
    """What the base or a version answered to a probe, with greedy sampling."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Of the prompt's tokens but the first, then of the answer's."""
    ended: bool
    """Whether the answer ended by itself, before its last token was due."""


@dataclass(frozen=True)
class EngineContents:
    """What the engine itself says that it holds, by the versions' ids."""

    slots: list[int]
    host: list[int]
    """Versions in host memory; those in slots are among them."""


class Engine(Protocol):
    """A resident base that answers with any adapter loaded into it."""

    state: EngineState
    max_running: int
    """How many sequences are given to it at a time."""
    longest_prompt_characters: int | None
    """No prompt with more characters fits the context; None where that isn't known."""
    prefill_tokens: int
    """How many of a tenant's prompt tokens a step should compute while others are served."""
    generation: int
    """Counts starts: what was loaded into an earlier generation is gone."""
    app_state: State
    """State of the FastAPI app, which vLLM's handlers read."""
    endpoints: Mapping[str, Endpoint]

    def require_ready(self) -> None:
        """Raise `server.errors.Unavailable` unless requests are answered."""

    async def require_progress(self) -> None:
        """Raise `server.errors.Unavailable` unless the engine gave a token lately.

        An engine that gave none, because nobody asked, is asked for one. Load doesn't fail it.
        """

    async def probe(self) -> None:
        """Have one token generated; raise `server.errors.Unavailable` if that fails."""

    async def prepare(self, version: VersionRecord, path: Path) -> None:
        """Read a version's weights into the engine's host memory; no running stream waits.

        Raises:
            NotLoadable: (of `server.errors`) the engine can't read them, or refuses them.
            Unavailable: the engine isn't there, or died.
        """

    async def resident(self) -> EngineContents:
        """What is in slots and host memory; `Unavailable` where the engine isn't there."""

    async def install(
        self, version: VersionRecord, keep: Callable[[], Iterable[int]] = tuple
    ) -> None:
        """Give a prepared version a free slot, or else that of a version that no request uses.

        Waits until there is one. `keep` says, each time it is looked for, whose slots may not be
        taken (by version id); an exception from it ends the wait. A version that loses its slot
        stays in host memory.

        Raises:
            Unavailable: the engine isn't ready, or the version isn't prepared.
        """

    async def evict(self, version: VersionRecord) -> None:
        """Free a version's slot and host memory, once no request in the engine uses it.

        Nothing to do where the engine is gone.
        """

    async def abort(self, version: VersionRecord) -> None:
        """End the requests that run on a version; nothing, where the engine is gone."""

    async def ask(
        self, text: str, max_tokens: int, version: VersionRecord | None, path: Path | None
    ) -> ProbeAnswer:
        """Have the base, or a loaded version, answer a probe; `Unavailable` if it can't."""


class SupervisedEngine(Engine, Protocol):
    """An engine together with what keeps it up."""

    async def run(self, on_ready: Callable[[], None]) -> None:
        """Start the engine and keep it up until cancelled; `on_ready` is called after each start.

        Raises:
            EngineFailed: (of `server.errors`) it can't be started, or died too often.
        """

    async def stop(self) -> None:
        """Stop the engine and every process that it started."""
