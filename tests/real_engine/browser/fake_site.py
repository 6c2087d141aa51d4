"""The console on the fake engine, in a thread, so that it can go away and come back."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import Request
from fastapi.responses import Response, StreamingResponse

from adapters_registry.records.catalog import VersionRecord
from adapters_registry.registry import Registry
from server.app import build_server
from server.auth import Keys
from server.engine.interface import Endpoint
from server.settings import Settings
from server.tenancy.meter import current_meter
from tests.server.fake_engine import INPUT_TOKENS, Body, FakeEngine, parse

SECRET = b"of the sessions, as long as it must be"


class ChatEngine(FakeEngine):
    """Streams what it is told to say."""

    def __init__(self, says: str) -> None:
        super().__init__()
        self._says = says
        self.endpoints = {"/v1/chat/completions": Endpoint(Body, parse, self._chat)}

    async def _chat(self, _body: Body, _raw: Request, _version: VersionRecord | None) -> Response:
        meter = current_meter.get()
        assert meter is not None

        async def check() -> None:
            """Nothing can be wrong with the request."""

        meter.check_before_stream(check)

        async def chunks() -> AsyncIterator[str]:
            async with meter.admission(INPUT_TOKENS) as answer:
                for character in self._says:
                    answer.add(1)
                    yield event(choices=[{"index": 0, "delta": {"content": character}}])
            yield event(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}])
            usage = {"prompt_tokens": INPUT_TOKENS, "completion_tokens": len(self._says)}
            yield event(choices=[], usage=usage)
            yield "data: [DONE]\n\n"

        return StreamingResponse(chunks(), media_type="text/event-stream")


def event(**fields: Any) -> str:
    return f"data: {json.dumps(fields)}\n\n"


class FakeSite:
    """Such a console. Each start makes a new app, as a new process would."""

    def __init__(self, registry: Registry, data_dir: Path, says: str = "hello") -> None:
        self._registry, self._data_dir, self._says = registry, data_dir, says
        self.keys = Keys(registry)
        self._port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Serve, at the address of the time before; returns as soon as it answers."""
        config = uvicorn.Config(
            self._app(), host="127.0.0.1", port=self._port, log_level="error", lifespan="off"
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive(), "the console did not start"
            self._thread.join(0.05)
        self._port = self._server.servers[0].sockets[0].getsockname()[1]

    def stop(self) -> None:
        """Go away."""
        self._server.should_exit = True
        self._thread.join(30)
        assert not self._thread.is_alive()

    def _app(self) -> Any:
        settings = Settings(data_dir=self._data_dir, max_loras=4)
        engine = ChatEngine(self._says)
        return build_server(
            settings, self._registry, engine, keys=self.keys, session_secret=SECRET
        ).app
