"""What the server asks of an engine. Free of vLLM, so that a fake can stand in for fast tests."""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fastapi import Request
from fastapi.responses import Response
from starlette.datastructures import State

from adapters_registry.catalog import VersionRecord


class EngineState(enum.StrEnum):
    """Where the engine stands; requests are answered in `READY` only."""

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
    """One route of OpenAI's or Anthropic's API: the type of its body, and what answers it."""

    body: type
    handler: Handler


class Engine(Protocol):
    """A resident base that answers with any adapter loaded into it."""

    state: EngineState
    generation: int
    """Counts starts: what was loaded into an earlier generation is gone."""
    app_state: State
    """State of the FastAPI app, which vLLM's handlers read."""
    endpoints: Mapping[str, Endpoint]

    def require_ready(self) -> None:
        """Raise `server.errors.Unavailable` unless requests are answered."""

    async def probe(self) -> None:
        """Have one token generated; raise `server.errors.Unavailable` if that fails."""

    async def load(self, version: VersionRecord, path: Path) -> None:
        """Load a version's weights; raise `server.errors.Unavailable` if the engine refuses."""
