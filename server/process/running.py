"""What runs while a server serves: HTTP, the engine, regular work; then the drain."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastapi import FastAPI

from adapters_registry.collection import Collector
from server import metrics
from server.engine.interface import SupervisedEngine
from server.process.departing import Departing
from server.process.http_server import HttpServer, http_config
from server.process.presence import Presence
from server.process.signals import EndSignals, drain
from server.process.upkeep import (
    BOOKKEEPING_INTERVAL_SECONDS,
    ROLL_UP_INTERVAL_SECONDS,
    collect_interval,
    collect_regularly,
    follow_changes,
    keep_books,
    roll_up_regularly,
)

if TYPE_CHECKING:
    from server.app import Server

log = logging.getLogger(__name__)


def freeze_heap() -> None:
    """Exempt what is in memory now from garbage collection, as vLLM's own server does.

    After a start these are millions of objects, mostly of imported modules. Looking at each again
    and again would stop all streams. What an engine that died had left is collected first.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()


@dataclass(frozen=True)
class RunningServer:
    """One server, and what runs while it serves."""

    server: Server
    engine: SupervisedEngine
    """The server's engine."""
    prepare: Callable[[asyncio.Event], Awaitable[None]]
    """Is called at the start with an event that is set when the engine is up. If it raises an
    error, the server ends."""
    books_seconds: float = BOOKKEEPING_INTERVAL_SECONDS
    """How often the books are written."""

    @property
    def books(self) -> tuple[Callable[[], None], ...]:
        """Functions that write to the database what requests left in memory."""
        services = self.server.services
        save_arms = services.rollouts.arms.save
        return services.keys.save_last_used, services.usage_buffer.save, save_arms

    async def run(self, listener: socket.socket, operations: socket.socket | None = None) -> int:
        """Answer HTTP from the first moment to the end of the drain. Returns the exit code.

        `operations` is the socket of the operations' own port. Requests get a 503 until the engine
        is up.
        """
        settings, lifecycle = self.server.services.settings, self.server.lifecycle
        registry, leases = self.server.services.registry, self.server.services.leases
        served = [(self.server.app, listener)]
        if operations:
            served.append((self.server.operations_app, operations))
        servers = [self._http_server(app) for app, _ in served]
        signals = EndSignals.watch()
        engine_is_up = asyncio.Event()

        def on_ready() -> None:
            metrics.ENGINE_STARTS.inc()
            freeze_heap()
            engine_is_up.set()

        sockets = [socket_of for _, socket_of in served]
        http = asyncio.create_task(_serve_all(servers, sockets))
        supervision = asyncio.create_task(self.engine.run(on_ready))
        ended = asyncio.create_task(signals.wait())
        port = listener.getsockname()[1]
        waiting = self.server.services.waiting.total
        presence = Presence(registry, leases, self.engine, settings.max_loras, port, waiting)
        background = [
            supervision,
            ended,
            preparing := asyncio.create_task(self._prepare(engine_is_up)),
            asyncio.create_task(follow_changes(registry, leases)),
            asyncio.create_task(keep_books(self.books, self.books_seconds)),
            asyncio.create_task(self.server.services.rollouts.run()),
            asyncio.create_task(presence.keep_up()),
            asyncio.create_task(self._collect()),
            asyncio.create_task(roll_up_regularly(registry, ROLL_UP_INTERVAL_SECONDS)),
        ]
        try:
            vital = {http, supervision, preparing, ended}
            await asyncio.wait(vital, return_when=asyncio.FIRST_COMPLETED)
            for task in (supervision, http, preparing):
                if task.done():
                    log.error("giving up: %s", task.exception() or "the HTTP server ended")
                    return 1
            await drain(lifecycle, settings, signals)
            return 0
        finally:
            lifecycle.draining = True
            for server in servers:
                server.should_exit = True
            await http
            for background_task in background:
                background_task.cancel()
            await asyncio.to_thread(presence.end)
            await self.engine.stop()

    async def _prepare(self, engine_is_up: asyncio.Event) -> None:
        """Prepare, and then wait for ever, so that only a failure ends the task."""
        await self.prepare(engine_is_up)
        await asyncio.Event().wait()

    async def _collect(self) -> None:
        services, settings = self.server.services, self.server.services.settings
        collector = Collector(
            services.registry,
            settings.garbage_grace,
            settings.keep_rejected,
            settings.keep_compositions,
        )
        shortest = min(settings.garbage_seconds, settings.composition_seconds)
        await collect_regularly(collector, collect_interval(shortest))

    def _http_server(self, app: FastAPI) -> HttpServer:
        settings, lifecycle = self.server.services.settings, self.server.lifecycle
        proxies = list(settings.trusted_proxies)
        config = http_config(
            Departing(app, lifecycle),
            is_debug=settings.log_level == "debug",
            proxy_headers=bool(proxies),
            forwarded_allow_ips=proxies,
        )
        return HttpServer(
            config, settings.write_stall_seconds, is_draining=lambda: lifecycle.draining
        )


async def _serve_all(servers: list[HttpServer], listeners: list[socket.socket]) -> None:
    pairs = zip(servers, listeners, strict=True)
    await asyncio.gather(*(server.serve(sockets=[listener]) for server, listener in pairs))
