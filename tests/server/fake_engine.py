"""An engine that answers with the name of what it was asked for; no model, no vLLM."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel
from starlette.datastructures import State

from adapters_registry.records.catalog import VersionRecord
from server.engine.interface import Endpoint, EngineContents, EngineState, ProbeAnswer
from server.engine.validation import fail_fast_validator
from server.errors import APIError, NotLoadable, Unavailable
from server.settings import Settings
from server.tenancy.meter import current_meter

INPUT_TOKENS, OUTPUT_TOKENS = 10, 20
"""What each answer costs."""


class Body(BaseModel):
    model: str | None = None
    stream: bool = False
    max_tokens: int | None = None
    n: int = 1


parse = fail_fast_validator(Body).validate_python


class FakeEngine:
    def __init__(self) -> None:
        self.state = EngineState.READY
        self.max_running = 2
        self.prefill_tokens = 100
        self.longest_prompt_characters: int | None = None
        self.generation = 1
        self.app_state = State()
        self.loads: list[str] = []
        self.aborted: list[str] = []
        self.evicted: list[str] = []
        self.max_loras = Settings().max_loras
        self.slots: set[int] = set()
        self.host: set[int] = set()
        self.fails_to_load: set[str] = set()
        self.base_answer = ProbeAnswer((1, 2), (-1.0, -2.0, -3.0, -1.0, -1.0), ended=True)
        self.answer = ProbeAnswer((3, 4), (-1.5, -2.0, -3.0, -1.0, -1.0), ended=True)
        """What every version says to a probe."""
        self.noise = 0.0
        """How far every second answer of the base is from the first."""
        self.num_asked = 0
        self.on_ask: Callable[[], Awaitable[None]] | None = None
        self.load_seconds = 0.0
        self.stream_may_end = asyncio.Event()
        self.hangs = False
        """Whether answers that aren't streamed go on until they are ended."""
        self.refuses_streams: APIError | None = None
        """What the check before a stream raises."""
        self.endpoints: Mapping[str, Endpoint] = {
            "/v1/chat/completions": Endpoint(Body, parse, self._answer),
            "/v1/messages": Endpoint(Body, parse, self._answer),
            "/v1/messages/count_tokens": Endpoint(Body, parse, self._count, generates=False),
        }

    def require_ready(self) -> None:
        if self.state is not EngineState.READY:
            raise Unavailable("the engine is starting")

    async def probe(self) -> None:
        self.require_ready()

    async def require_progress(self) -> None:
        self.require_ready()

    async def prepare(self, version: VersionRecord, path: Path) -> None:
        self.require_ready()
        assert path.is_dir()
        await asyncio.sleep(self.load_seconds)
        self.loads.append(version.public_name)
        if version.public_name in self.fails_to_load:
            raise NotLoadable(f"{version.public_name} could not be loaded")
        self.host.add(version.version_id)

    async def resident(self) -> EngineContents:
        return EngineContents(sorted(self.slots), sorted(self.host))

    async def install(
        self, version: VersionRecord, keep: Callable[[], Iterable[int]] = tuple
    ) -> None:
        self.require_ready()
        assert version.version_id in self.host, "not prepared"
        kept = set(keep())
        if len(self.slots | {version.version_id}) > self.max_loras:
            self.slots.discard(next(holder for holder in self.slots if holder not in kept))
        self.slots.add(version.version_id)

    async def evict(self, version: VersionRecord) -> None:
        self.evicted.append(version.public_name)
        self.slots.discard(version.version_id)
        self.host.discard(version.version_id)

    async def abort(self, version: VersionRecord) -> None:
        self.aborted.append(version.public_name)
        self.stream_may_end.set()

    async def ask(
        self, text: str, max_tokens: int, version: VersionRecord | None, path: Path | None
    ) -> ProbeAnswer:
        self.require_ready()
        self.num_asked += 1
        if version is None:
            logprobs = (
                x + self.noise * (self.num_asked % 3 == 2) for x in self.base_answer.logprobs
            )
            return replace(self.base_answer, logprobs=tuple(logprobs))
        assert version.version_id in self.slots
        if self.on_ask:
            await self.on_ask()
        return self.answer

    async def _count(self, _body: Body, _raw: Request, _version: VersionRecord | None) -> Response:
        return JSONResponse({"input_tokens": INPUT_TOKENS})

    async def _answer(self, body: Body, _raw: Request, version: VersionRecord | None) -> Response:
        name = version.public_name if version else "base"
        meter = current_meter.get()
        assert meter is not None
        if self.hangs and not body.stream:
            ended_early = asyncio.Event()
            with meter.ending_early(lambda _: ended_early.set()):
                await ended_early.wait()
            raise APIError("vLLM's words for it")
        if not body.stream:
            async with meter.admission(INPUT_TOKENS, body.n) as answer:
                for _ in range(body.max_tokens or OUTPUT_TOKENS):
                    answer.add(1)
        if not body.stream:
            return JSONResponse({"model": name})

        async def check() -> None:
            if self.refuses_streams:
                raise self.refuses_streams

        meter.check_before_stream(check)

        async def chunks() -> AsyncIterator[str]:
            ended_early = asyncio.Event()
            with meter.ending_early(lambda _: ended_early.set()):
                async with meter.admission(INPUT_TOKENS) as answer:
                    answer.add(1)
                    yield f"data: {name}\n\n"
                    while not self.stream_may_end.is_set() and not ended_early.is_set():
                        await asyncio.sleep(0.001)
                    answer.add(1)
                if meter.ended_by:
                    yield f"data: {meter.ended_by.code}\n\n"
                yield "data: [DONE]\n\n"

        return StreamingResponse(chunks(), media_type="text/event-stream")
