"""One server process from its first line to its last: start, serve, drain, exit."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import uvloop
from fastapi import FastAPI

from adapters_registry import rechecks
from adapters_registry.collection import Collector
from adapters_registry.records.keys import KeyPolicy
from server import metrics
from server.api.dedicated.dedicated import Dedicated
from server.auth import Keys
from server.engine.device.choice import fit_to_device
from server.engine.environment import (
    choose_cpu_base,
    choose_gpu_lora,
    choose_traces,
    limit_choices,
    prepare_environment,
)
from server.engine.interface import SupervisedEngine
from server.lifecycle import Lifecycle
from server.process import dedication, demo
from server.process.data_dir import own_data_dir
from server.process.departing import Departing
from server.process.http_server import HttpServer, http_config
from server.process.presence import Presence
from server.process.signals import EndSignals, drain
from server.process.startup import (
    config_directory,
    listen,
    listen_for_operations,
    open_registry,
    prepare_base,
    provide_admin_key,
    provide_session_secret,
)
from server.process.upkeep import (
    BOOKKEEPING_INTERVAL_SECONDS,
    ROLL_UP_INTERVAL_SECONDS,
    collect_interval,
    collect_regularly,
    follow_changes,
    keep_books,
    roll_up_regularly,
    write_books,
)
from server.request_log.lines import RequestLines
from server.residency.merged_leases import MergedLeases
from server.settings import Settings
from server.settings.traces_endpoint import TracesEndpoint
from server.tracing.traces import Traces

if TYPE_CHECKING:
    from server.app import Server

log = logging.getLogger(__name__)

RESTORED = "the database was restored: ids under which the engine holds adapters may recur"
HTTP_SETTING = "LORAPLEX_HOST, LORAPLEX_PORT (--host, --port)"


def serve(
    settings: Settings,
    announce: Callable[[str], None],
    verify: dedication.Verify | None = None,
) -> int:
    """Run the server until a signal ends it; return the exit code.

    `announce` is called with each line that a person at the terminal should read. `verify`
    compares a dedicated server with a shared one, before it is ready.

    Raises:
        SettingsError: a setting cannot be used. This is raised before anything is started.
    """
    started = time.monotonic()
    with (
        listen(settings.host, settings.port, HTTP_SETTING) as listener,
        listen_for_operations(settings) as operations,
        own_data_dir(settings),
    ):
        base = prepare_base(settings, announce)
        merged = dedication.merged_in(base)
        if merged:
            settings = dedication.without_slots(settings)
        prepare_environment(base, settings.log_level, settings.cpu_lora_kernels, settings.data_dir)
        limit_choices(settings.max_choices)
        choose_cpu_base(settings.cpu_base_kernels)
        choose_gpu_lora(
            settings.gpu_lora_kernels,
            settings.gpu_lora_loading,
            settings.gpu_lora_tiles_file.absolute(),
        )
        choices: list[str] = []  # said once nothing can be refused any more
        settings = fit_to_device(settings, config_directory(base), choices.append)
        registry = open_registry(settings, base, merged)
        if merged:
            dedication.require_offered(registry, merged)
        keys = Keys(registry, policy=KeyPolicy(settings.longest_key_life))
        provide_admin_key(settings, keys)
        session_secret = provide_session_secret(settings)
        has_demo = settings.demo and not settings.base
        if has_demo:
            demo.register(registry)
        prepared = time.monotonic()

        from server.app import build_server
        from server.engine.supervisor import EngineSupervisor

        content = registry.content
        if merged:
            engine = EngineSupervisor(
                dedication.for_engine(settings, merged),
                base,
                content.path,
                dedication.fetching(base, merged, content.fetch),
                merged,
            )
            dedicated: Dedicated | None = Dedicated(merged, settings.served_base_name)
            leases = MergedLeases(settings, engine, registry, merged)
        else:
            engine = EngineSupervisor(settings, base, content.path, content.fetch)
            dedicated, leases = None, None
        registry.on_restored = partial(engine.condemn, RESTORED)
        for choice in choices:
            announce(choice)
        request_lines = RequestLines(settings.request_log)
        traces = _traces(settings)
        server = build_server(
            settings,
            registry,
            engine,
            keys=keys,
            leases=leases,
            lifecycle=Lifecycle(prepared=False),
            request_lines=request_lines,
            session_secret=session_secret,
            traces=traces,
            dedicated=dedicated,
        )
        gate = server.services.gate
        imported = time.monotonic()
        address = f"http://{settings.host}:{listener.getsockname()[1]}"

        def announce_ready() -> None:
            ready = time.monotonic()
            announce(
                f"ready at {address} after {ready - started:.1f} s (prepare "
                f"{prepared - started:.1f}, import {imported - prepared:.1f}, "
                f"engine {ready - imported:.1f})"
            )
            if operations:
                port = operations.getsockname()[1]
                announce(f"operations: http://{settings.host}:{port}/metrics")
            if settings.admin_key_path.is_file():
                announce(f"admin key: {settings.admin_key_path}")
            if incompatible := rechecks.summary(registry):
                announce(incompatible)
            if has_demo:
                announce(demo.examples(address, settings))

        async def prepare(engine_is_up: asyncio.Event) -> None:
            """Become ready after the checks that are due; then check what no other server does."""
            awaited = demo.unchecked(registry) if has_demo else []
            if settings.recheck_at_start:
                awaited += await asyncio.to_thread(rechecks.begin, registry)
            for version in awaited:
                gate.start(version)
            await engine_is_up.wait()
            await asyncio.gather(*map(gate.verdict, awaited), return_exceptions=True)
            server.lifecycle.prepared = True
            announce_ready()
            await gate.take_up()

        async def prepare_dedicated(engine_is_up: asyncio.Event) -> None:
            """Become ready after the comparison with a shared server; there is nothing to check."""
            await engine_is_up.wait()
            if verify:
                await asyncio.to_thread(verify, address)
            server.lifecycle.prepared = True
            announce_ready()
            assert dedicated is not None
            await dedication.tell_changes(registry, dedicated, announce)

        running = RunningServer(server, engine, prepare_dedicated if merged else prepare)
        try:
            return uvloop.run(running.run(listener, operations))
        finally:
            write_books(running.books)
            request_lines.close()
            if traces:
                traces.close()
            registry.close()


def freeze_heap() -> None:
    """Exempt what is in memory now from garbage collection, as vLLM's own server does.

    After a start these are millions of objects, mostly of imported modules. Looking at each again
    and again would stop all streams. What an engine that died had left is collected first.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def _traces(settings: Settings) -> Traces | None:
    """Return what traces requests, or None; vLLM's engine is told before it is started."""
    if settings.traces_endpoint is None:
        return None
    endpoint = TracesEndpoint.parse(settings.traces_endpoint)
    choose_traces(endpoint.protocol)
    return Traces(endpoint, settings.traces_share)


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
