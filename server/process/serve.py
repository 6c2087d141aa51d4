"""One server process from its first line to its last: sockets, signals, draining, exit."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
from fastapi import FastAPI
from sqlalchemy.exc import SQLAlchemyError

from adapters_registry.check.base import BaseSpec
from adapters_registry.content.store import ContentStore
from adapters_registry.errors import StoreUnavailable
from adapters_registry.registry import Registry
from server import bundled_base, metrics
from server.auth import Keys
from server.engine.environment import prepare_environment
from server.gate.gate import Gate
from server.lifecycle import Lifecycle
from server.process import demo
from server.process.data_dir import open_content, own_data_dir
from server.process.http_server import HttpServer
from server.residency.leases import Leases
from server.settings import Settings, SettingsError
from server.tenancy.usage import UsageBuffer

if TYPE_CHECKING:
    from server.engine.supervisor import EngineSupervisor

log = logging.getLogger(__name__)

FORCED_CLOSE_SECONDS = 2
KEEP_ALIVE_SECONDS = 75
"""More than proxies keep idle connections to us (mostly 60): a request that is on its way to a
connection as we close it fails, or is sent again."""
FOLLOW_INTERVAL_SECONDS = 0.5
BOOKKEEPING_INTERVAL_SECONDS = 10

Books = Sequence[Callable[[], None]]


def serve(settings: Settings, announce: Callable[[str], None]) -> int:
    """Run the server until a signal ends it; return the exit code.

    `announce` is given the lines that a person at the terminal should read.

    Raises:
        SettingsError: a setting that can't be used, found before anything was started.
    """
    started = time.monotonic()
    with _listen(settings) as listener, own_data_dir(settings):
        base = _prepare_base(settings, announce)
        prepare_environment(base, settings.log_level, settings.cpu_lora_kernels)
        registry = _open_registry(settings, base)
        keys = Keys(registry)
        keys.create_first_admin_key(settings.admin_key_file)
        has_demo = settings.demo and not settings.base
        if has_demo:
            demo.register(registry)
        prepared = time.monotonic()

        from server.app import build_app
        from server.engine.supervisor import EngineSupervisor

        engine = EngineSupervisor(settings, base, registry.content.path)
        adapters = Leases.of(settings, engine, registry)
        gate, lifecycle = Gate(registry, engine, adapters), Lifecycle(prepared=False)
        showback = UsageBuffer(registry)
        app = build_app(settings, registry, keys, engine, adapters, gate, lifecycle, showback)
        imported = time.monotonic()
        address = f"http://{settings.host}:{listener.getsockname()[1]}"

        def announce_ready() -> None:
            ready = time.monotonic()
            announce(
                f"ready at {address} after {ready - started:.1f} s (prepare "
                f"{prepared - started:.1f}, import {imported - prepared:.1f}, "
                f"engine {ready - imported:.1f})"
            )
            if settings.admin_key_file.is_file():
                announce(f"admin key: {settings.admin_key_file}")
            if has_demo:
                announce(demo.examples(address, settings))

        async def prepare(engine_is_up: asyncio.Event) -> None:
            """Take up the checks that the last process left; ready once the demo's are done."""
            awaited = demo.unchecked(registry)
            for version in [*awaited, *(v for v in registry.unfinished() if v not in awaited)]:
                gate.start(version)
            await engine_is_up.wait()
            await asyncio.gather(*map(gate.verdict, awaited), return_exceptions=True)
            lifecycle.prepared = True
            announce_ready()

        books = keys.save_last_used, showback.save
        try:
            return asyncio.run(
                _run(settings, app, listener, registry, books, adapters, engine, lifecycle, prepare)
            )
        finally:
            _save(books)
            registry.close()


async def _run(
    settings: Settings,
    app: FastAPI,
    listener: socket.socket,
    registry: Registry,
    books: Books,
    leases: Leases,
    engine: EngineSupervisor,
    lifecycle: Lifecycle,
    prepare: Callable[[asyncio.Event], Coroutine[Any, Any, None]],
) -> int:
    """HTTP answers from the first moment (503 until the engine is up) to the end of the drain."""
    config = uvicorn.Config(
        app,
        log_level="info" if settings.log_level == "debug" else "warning",
        access_log=settings.log_level == "debug",
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=FORCED_CLOSE_SECONDS,
        ws="none",
    )
    server = HttpServer(config)
    signalled = _watch_signals()
    http = asyncio.create_task(server.serve(sockets=[listener]))
    engine_is_up = asyncio.Event()

    def on_ready() -> None:
        metrics.ENGINE_STARTS.inc()
        engine_is_up.set()

    preparation = asyncio.create_task(prepare(engine_is_up))
    supervision = asyncio.create_task(engine.run(on_ready))
    ended = asyncio.create_task(signalled.wait())
    following = asyncio.create_task(follow_changes(registry, leases))
    bookkeeping = asyncio.create_task(_keep_books(books))
    try:
        await asyncio.wait({http, supervision, ended}, return_when=asyncio.FIRST_COMPLETED)
        for task in (supervision, http):
            if task.done():
                log.error("giving up: %s", task.exception() or "the HTTP server ended")
                return 1
        await _drain(lifecycle, settings, signalled)
        return 0
    finally:
        lifecycle.draining = True
        server.should_exit = True
        await http
        preparation.cancel()
        supervision.cancel()
        ended.cancel()
        following.cancel()
        bookkeeping.cancel()
        engine.stop()


async def follow_changes(registry: Registry, leases: Leases) -> None:
    """Take in what other servers on the same database change, within a second."""
    reachable = True
    while True:
        await asyncio.sleep(FOLLOW_INTERVAL_SECONDS)
        try:
            await asyncio.to_thread(registry.refresh)
        except SQLAlchemyError as error:
            if reachable:
                log.error(
                    "the registry's database doesn't answer; serving what is known: %s", error
                )
            reachable = False
        else:
            reachable = True
        leases.follow(registry.catalog)


async def _keep_books(books: Books) -> None:
    """Record now and then what requests have left in memory."""
    while True:
        await asyncio.sleep(BOOKKEEPING_INTERVAL_SECONDS)
        await asyncio.to_thread(_save, books)


def _save(books: Books) -> None:
    for save in books:
        try:
            save()
        except SQLAlchemyError as error:
            log.error("usage, or when keys were last used, can't be recorded: %s", error)


class _Signalled(asyncio.Event):
    """Set by SIGTERM and SIGINT."""

    last: int | None = None
    """Which one it was."""

    def on(self, number: int) -> None:
        self.last = number
        self.set()


def _watch_signals() -> _Signalled:
    signalled = _Signalled()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signalled.on, number)
    return signalled


async def _drain(lifecycle: Lifecycle, settings: Settings, signalled: _Signalled) -> None:
    """Let open streams finish; a second signal ends the waiting.

    Routers get notice of a SIGTERM; Ctrl-C comes from a person, who waits.
    """
    seconds = settings.drain_seconds
    notice_seconds = settings.notice_seconds if signalled.last == signal.SIGTERM else 0
    log.info(
        "leaving: new requests are refused after %g s, open ones then have %g s",
        notice_seconds,
        seconds,
    )
    signalled.clear()
    drained = asyncio.create_task(lifecycle.drain(seconds, notice_seconds))
    again = asyncio.create_task(signalled.wait())
    await asyncio.wait({drained, again}, return_when=asyncio.FIRST_COMPLETED)
    if not (drained.done() and drained.result()):
        log.warning("some requests were cut off")
    drained.cancel()
    again.cancel()


def _listen(settings: Settings) -> socket.socket:
    """Bind before anything slow, so that a port in use is said at once."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
        listener.listen(2048)  # or another server could still take the port before uvicorn listens
    except OSError as error:
        listener.close()
        raise SettingsError(
            f"LORAPLEX_HOST, LORAPLEX_PORT (--host, --port): can't listen on "
            f"{settings.host}:{settings.port}: {error.strerror}; choose another"
        ) from error
    listener.set_inheritable(False)
    return listener


def _prepare_base(settings: Settings, announce: Callable[[str], None]) -> str:
    if settings.base:
        return settings.base
    try:
        if not bundled_base.bundled_base_directory().is_dir():
            announce(f"preparing the bundled base {bundled_base.NAME} (once, about 20 s)")
        return str(bundled_base.ensure_bundled_base())
    except (bundled_base.BundledBaseMissing, subprocess.CalledProcessError) as error:
        raise SettingsError(f"LORAPLEX_BASE (--base): {error}") from error


def _open_registry(settings: Settings, base: str) -> Registry:
    try:
        spec = replace(
            base_spec(base, settings.max_lora_rank),
            refuses_other_rounding=settings.other_rounding == "refuse",
        )
    except (OSError, ValueError) as error:
        raise SettingsError(f"LORAPLEX_BASE (--base): {error}") from error
    try:
        content = open_content(settings)
        _try_origin(content)
        return Registry(settings.records_url, content, spec)
    except (OSError, ImportError, SQLAlchemyError) as error:
        cause = str(error).splitlines()[0]
        raise SettingsError(
            f"LORAPLEX_DATA_DIR, LORAPLEX_DATABASE_URL: can't open the registry: {cause}"
        ) from error


def _try_origin(content: ContentStore) -> None:
    """Say at once that the origin can't be used; what is in the data folder is served even so."""
    try:
        if content.origin:
            content.origin.size_of("0" * 64)
    except StoreUnavailable as error:
        log.error("LORAPLEX_ORIGIN: %s", error)


def base_spec(base: str, max_rank: int) -> BaseSpec:
    """The base's modules, from its directory or, for a hub id, from the hub's configuration.

    Raises:
        ValueError: the configuration can't be had, or is of no Llama model.
    """
    directory, name = Path(base), ""
    if not directory.is_dir():
        from huggingface_hub import hf_hub_download

        try:
            directory, name = Path(hf_hub_download(base, "config.json")).parent, base
        except OSError as error:
            raise ValueError(
                f"can't get {base} from the Hugging Face hub ({type(error).__name__}): check the "
                "connection and HF_TOKEN, or name a model directory"
            ) from error
    return BaseSpec.from_directory(directory, max_rank, name)
