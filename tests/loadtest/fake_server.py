"""Enough of a server for measurements: versions of adapters, slots, and streams of no engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from loadtest.measurements.measured_server import MeasuredServer

BASE = "base"


@asynccontextmanager
async def measured(app: ASGIApp) -> AsyncIterator[MeasuredServer]:
    """Serve an app on a free port, for a measurement."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off"))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.001)
    port = server.servers[0].sockets[0].getsockname()[1]
    async with MeasuredServer.connect(f"http://127.0.0.1:{port}", "key") as connected:
        yield connected
    server.should_exit = True
    await serving


def stream_of(*events: Any, **headers: str) -> Response:
    """Return an answer whose events come one by one."""

    async def pieces() -> AsyncIterator[str]:
        for event in events:
            yield f"data: {json.dumps(event)}\n\n"
            await asyncio.sleep(0.0005)
        yield "data: [DONE]\n\n"

    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return StreamingResponse(pieces(), headers=named, media_type="text/event-stream")


class FakeServer:
    """Each version's own token at a place is its number; it finds others unlikely."""

    def __init__(self, slots: int = 2) -> None:
        self.versions: dict[str, int] = {}
        self.live: dict[str, int] = {}
        self.num_loads = 0
        self.num_promotions = 0
        self.refuse_under_load = 0
        """So many streams are refused, from the first promotion on."""
        self.answers_as: dict[str, str] = {}
        """Models that another's weights answer: what must not happen."""
        self.streams_as: dict[str, str] = {}
        """The same for streams only, from the first promotion on."""
        self._slots: list[str] = []
        self._num_slots = slots

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/models", self._models),
                Route("/metrics", self._metrics),
                Route("/admin/adapters", self._register, methods=["POST"]),
                Route(
                    "/admin/adapters/default/{name}/aliases/live", self._promote, methods=["PUT"]
                ),
                Route("/v1/completions", self._complete, methods=["POST"]),
            ]
        )

    async def _models(self, request: Request) -> Response:
        adapters = [{"id": name, "parent": BASE} for name in self.live]
        return JSONResponse({"data": [{"id": BASE}, *adapters]})

    async def _metrics(self, request: Request) -> Response:
        name = "loraplex_adapter_load_seconds_count"
        return PlainTextResponse(
            f'{name}{{from_tier="disk",outcome="ok"}} {self.num_loads}.0\n'
            f'vllm:max_gpu_lora_adapters{{model_name="base"}} {self._num_slots}.0\n'
        )

    async def _register(self, request: Request) -> Response:
        form = await request.form()
        name = str(form["name"])
        assert {part.filename for part in form.getlist("files") if not isinstance(part, str)} == {
            "adapter_config.json",
            "adapter_model.safetensors",
        }
        version = self.versions[name] = self.versions.get(name, 0) + 1
        self.live[name] = version
        return JSONResponse({"version": version}, 201)

    async def _promote(self, request: Request) -> Response:
        self.num_promotions += 1
        self.live[request.path_params["name"]] = (await request.json())["targets"][0]["version"]
        return JSONResponse({})

    async def _complete(self, request: Request) -> Response:
        body = await request.json()
        name, _, number = body["model"].removeprefix("default/").partition("@")
        is_base = name == BASE
        version = 0 if is_base else int(number or self.live[name])
        model = BASE if is_base else f"default/{name}@{version}"
        if not body.get("stream"):
            return self._completed(body, _token_of(self.answers_as.get(model, model)))
        streams_as = self.answers_as
        if self.num_promotions:
            streams_as = streams_as | self.streams_as
            if self.refuse_under_load:
                self.refuse_under_load -= 1
                return JSONResponse({"error": {"message": "no slot"}}, 503)
        token = _token_of(streams_as.get(model, model))
        event = {"model": model, "choices": [{"text": "x", "token_ids": [token]}]}
        headers = {} if is_base else {"x_adapter_tier": self._find(model)}
        return stream_of(*[event] * body["max_tokens"], **headers)

    def _completed(self, body: dict[str, Any], own: int) -> Response:
        entries: list[Any] = [None]
        for token in body["prompt"][1:]:
            entry = {str(own): {"logprob": -0.1, "rank": 1}}
            entries.append({str(token): {"logprob": -7.0, "rank": 9}} | entry)
        usage = {"completion_tokens": body["max_tokens"]}
        return JSONResponse({"choices": [{"prompt_logprobs": entries}], "usage": usage})

    def _find(self, model: str) -> str:
        if model in self._slots:
            return "slot"
        self.num_loads += 1
        self._slots = [*self._slots, model][-self._num_slots :]
        return "disk"


def _token_of(weights: str) -> int:
    return 100 + sum(map(ord, weights))
