"""An engine that answers with the name of what it was asked for; no model, no vLLM."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel
from starlette.datastructures import State

from adapters_registry.catalog import VersionRecord
from server.engine.interface import Endpoint, EngineState
from server.errors import Unavailable


class Body(BaseModel):
    model: str | None = None
    stream: bool = False


class FakeEngine:
    def __init__(self) -> None:
        self.state = EngineState.READY
        self.generation = 1
        self.app_state = State()
        self.loads: list[str] = []
        self.fails_to_load: set[str] = set()
        self.load_seconds = 0.0
        self.stream_may_end = asyncio.Event()
        self.endpoints: Mapping[str, Endpoint] = {
            "/v1/chat/completions": Endpoint(Body, self._answer),
            "/v1/messages": Endpoint(Body, self._answer),
        }

    def require_ready(self) -> None:
        if self.state is not EngineState.READY:
            raise Unavailable("the engine is starting")

    async def probe(self) -> None:
        self.require_ready()

    async def load(self, version: VersionRecord, path: Path) -> None:
        assert path.is_dir()
        await asyncio.sleep(self.load_seconds)
        self.loads.append(version.public_name)
        if version.public_name in self.fails_to_load:
            raise Unavailable(f"{version.public_name} could not be loaded")

    async def _answer(self, body: Body, _raw: Request, version: VersionRecord | None) -> Response:
        name = version.public_name if version else "base"
        if not body.stream:
            return JSONResponse({"model": name})

        async def chunks():  # type: ignore[no-untyped-def]
            yield f"data: {name}\n\n"
            await self.stream_may_end.wait()
            yield "data: [DONE]\n\n"

        return StreamingResponse(chunks(), media_type="text/event-stream")
