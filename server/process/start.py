"""The slow part of a start: it imports vLLM, opens the registry, and puts the server together."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop

from adapters_registry import rechecks
from adapters_registry.records.keys import KeyPolicy
from server.api.dedicated.dedicated import Dedicated
from server.app import Server, build_server
from server.auth import Keys
from server.engine.device.choice import fit_to_device
from server.engine.environment import choose_cpu_base, choose_traces, keep_variables_of_vllm
from server.engine.supervisor import EngineSupervisor
from server.lifecycle import Lifecycle
from server.process import dedication, demo
from server.process.running import RunningServer
from server.process.startup import (
    base_quantization,
    config_directory,
    open_registry,
    provide_admin_key,
    provide_session_secret,
)
from server.process.upkeep import write_books
from server.request_log.lines import RequestLines
from server.residency.merged_leases import MergedLeases
from server.settings import Settings
from server.settings.traces_endpoint import TracesEndpoint
from server.tracing.traces import Traces

if TYPE_CHECKING:
    from adapters_registry.content.merged_model import MergedVersion
    from adapters_registry.registry import Registry
    from server.process.serve import Beginning

RESTORED = "the database was restored: ids under which the engine holds adapters may recur"

Prepare = Callable[[asyncio.Event], Awaitable[None]]
"""What is left to do at the start. It gets an event that is set when the engine is up."""


def start(beginning: Beginning) -> int:
    """Run the server until a signal ends it; return the exit code.

    Raises:
        SettingsError: a setting cannot be used. This is raised before the engine is started.
    """
    base, announce, stopwatch = beginning.base, beginning.announce, beginning.stopwatch
    settings, merged = beginning.settings, dedication.merged_in(base)
    if merged:
        settings = dedication.without_slots(settings)
    directory = config_directory(base)
    choose_cpu_base(settings.cpu_base_kernels, base_quantization(settings, directory))
    choices: list[str] = []  # said once nothing can be refused any more
    settings = fit_to_device(settings, directory, choices.append)
    stopwatch.end("imports")  # vLLM's are the last, to read the device
    registry = open_registry(settings, base, merged)
    if merged:
        dedication.require_offered(registry, merged)
    keys = Keys(registry, policy=KeyPolicy(settings.longest_key_life))
    provide_admin_key(settings, keys)
    session_secret = provide_session_secret(settings)
    if has_demo := settings.demo and not settings.base:
        demo.register(registry)
    stopwatch.end("registry")
    engine = _engine(beginning, settings, registry, merged)
    dedicated = Dedicated(merged, settings.served_base_name) if merged else None
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
        leases=MergedLeases(settings, engine, registry, merged) if merged else None,
        lifecycle=Lifecycle(prepared=False),
        request_lines=request_lines,
        session_secret=session_secret,
        traces=traces,
        dedicated=dedicated,
    )
    stopwatch.end("app")
    prepare = (
        _prepare_dedicated(beginning, server, dedicated)
        if dedicated
        else _prepare(beginning, server, has_demo=has_demo)
    )
    running = RunningServer(server, engine, prepare)
    try:
        gc.enable()
        beginning.early_answers.hand_over()
        return uvloop.run(running.run(beginning.listener, beginning.operations))
    finally:
        write_books(running.books)
        request_lines.close()
        if traces:
            traces.close()
        registry.close()


def _engine(
    beginning: Beginning, settings: Settings, registry: Registry, merged: MergedVersion | None
) -> EngineSupervisor:
    content, base = registry.content, beginning.base
    fetch: Callable[[str], Path] = content.fetch
    if merged:
        fetch = dedication.fetching(base, merged, fetch)
        settings = dedication.for_engine(settings, merged)
    return EngineSupervisor(
        settings,
        base,
        content.path,
        fetch,
        merged,
        fork_server=beginning.fork_server,
        on_phase=beginning.stopwatch.end,
    )


def _prepare(beginning: Beginning, server: Server, *, has_demo: bool) -> Prepare:
    registry, gate = server.services.registry, server.services.gate

    async def prepare(engine_is_up: asyncio.Event) -> None:
        """Become ready after the checks that are due; then check what no other server does."""
        awaited = demo.unchecked(registry) if has_demo else []
        if server.services.settings.recheck_at_start:
            awaited += await asyncio.to_thread(rechecks.begin, registry)
        for version in awaited:
            gate.start(version)
        await engine_is_up.wait()
        keep_variables_of_vllm()
        await asyncio.gather(*map(gate.verdict, awaited), return_exceptions=True)
        if awaited:
            beginning.stopwatch.end("checks")
        server.lifecycle.prepared = True
        _announce_ready(beginning, server)
        if incompatible := rechecks.summary(registry):
            beginning.announce(incompatible)
        if has_demo:
            beginning.announce(demo.examples(_address(beginning), server.services.settings))
        await gate.take_up()

    return prepare


def _prepare_dedicated(beginning: Beginning, server: Server, dedicated: Dedicated) -> Prepare:
    async def prepare(engine_is_up: asyncio.Event) -> None:
        """Become ready after the comparison with a shared server; there is nothing to check."""
        await engine_is_up.wait()
        keep_variables_of_vllm()
        if beginning.verify:
            await asyncio.to_thread(beginning.verify, _address(beginning))
            beginning.stopwatch.end("comparison")
        server.lifecycle.prepared = True
        _announce_ready(beginning, server)
        await dedication.tell_changes(server.services.registry, dedicated, beginning.announce)

    return prepare


def _announce_ready(beginning: Beginning, server: Server) -> None:
    """Say where the server answers and where its start's seconds went."""
    settings, announce = server.services.settings, beginning.announce
    announce(f"ready at {_address(beginning)} after {beginning.stopwatch.summary()}")
    if beginning.operations:
        port = beginning.operations.getsockname()[1]
        announce(f"operations: http://{settings.host}:{port}/metrics")
    if settings.admin_key_path.is_file():
        announce(f"admin key: {settings.admin_key_path}")


def _address(beginning: Beginning) -> str:
    return f"http://{beginning.settings.host}:{beginning.listener.getsockname()[1]}"


def _traces(settings: Settings) -> Traces | None:
    """Return what traces requests, or None; vLLM's engine is told before it is started."""
    if settings.traces_endpoint is None:
        return None
    endpoint = TracesEndpoint.parse(settings.traces_endpoint)
    choose_traces(endpoint.protocol)
    return Traces(endpoint, settings.traces_share)
