"""Keeps one vLLM engine alive: starts it, restarts it if it dies or hangs, and stops it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.datastructures import State

from adapters_registry.content.merged_model import MergedVersion
from adapters_registry.records.catalog import VersionRecord
from server.engine import cpu, environment
from server.engine.arguments import engine_arguments, step_tokens
from server.engine.device import defaults
from server.engine.device.device import read_device
from server.engine.errors import map_exception
from server.engine.interface import Endpoint, EngineFailed, EngineState, ProbeAnswer
from server.engine.loading import AdapterLoading
from server.engine.lora_info import take_out_lora_info
from server.engine.openai import LeasedAdapters, longest_prompt_characters, make_endpoints
from server.engine.own_defaults import follow_versions
from server.engine.process.fork_server import EngineForkServer
from server.engine.running.children import kill_child_processes
from server.engine.running.client import EngineClient
from server.engine.running.plain_streams import stream_plainly
from server.engine.running.tokenizing import tokenize_in_turns
from server.errors import NotServing, Unavailable
from server.settings import Settings

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.engine.async_llm import AsyncLLM

T = TypeVar("T")

log = logging.getLogger(__name__)

RESTART_WINDOW_SECONDS = 600.0
RESTART_PAUSES_SECONDS = (1.0, 5.0, 20.0)
"""Pauses before the first, the second, and each later restart within the window."""
_WHY_NOT = {
    EngineState.STARTING: "the engine is starting",
    EngineState.RESTARTING: "the engine died and is being restarted",
    EngineState.FAILED: "the engine can't be started",
    EngineState.STOPPED: "the server is shutting down",
}


class EngineSupervisor(AdapterLoading):
    """The `Engine` of `interface`, made of vLLM's AsyncLLM and its OpenAI handlers."""

    def __init__(
        self,
        settings: Settings,
        base: str,
        content_path: Callable[[str], Path],
        fetch: Callable[[str], Path] | None = None,
        merged: MergedVersion | None = None,
        *,
        fork_server: EngineForkServer | None = None,
        on_phase: Callable[[str], None] = lambda _phase: None,
    ) -> None:
        """Parse the arguments. Raises `SettingsError` if one is wrong. Starts nothing yet.

        `merged` is the version that was merged into the base, if there is one. `fork_server` is
        where the engine's process comes from, if it was started. `on_phase` is called with the name
        of each phase of a start when it ends.
        """
        self.state = EngineState.STARTING
        self.generation = 0
        self.app_state = State()
        self.endpoints: Mapping[str, Endpoint] = make_endpoints(content_path, fetch, merged)
        device = read_device()
        self._arguments: Namespace = engine_arguments(
            settings, base, device, has_adapters=merged is None
        )
        tokens = step_tokens(self._arguments, device)
        default_running = defaults.max_running(device, self._arguments.max_num_seqs)
        self.max_running = settings.max_running or default_running
        self.prefill_tokens = defaults.prefill(
            device, settings.prefill_tokens, tokens
        ).tenant_tokens
        self.longest_prompt_characters: int | None = None
        self._max_restarts = settings.max_engine_restarts
        self._hang_seconds = settings.hang_seconds or defaults.hang_seconds(device)
        self._stop_seconds = settings.engine_stop_seconds or defaults.stop_seconds(device)
        self._client: EngineClient | None = None
        self._fork_server, self._on_phase = fork_server, on_phase

    async def run(self, on_ready: Callable[[], None]) -> None:
        """Start the engine and keep it up until cancelled. Calls `on_ready` after each start.

        Raises:
            EngineFailed: it can't be started, or died too often.
        """
        deaths: list[float] = []
        while True:
            try:
                await self._start()
            except Exception as error:
                log.error("the engine can't be started: %s", error or repr(error))
                if self.generation == 0:
                    self.state = EngineState.FAILED
                    raise EngineFailed("the engine can't be started") from error
            else:
                on_ready()
                assert self._client is not None
                log.error("the engine fails: %s", await self._client.watch(self._hang_seconds))
            self.state = EngineState.RESTARTING
            await self._discard_client(at_once=True)
            now = time.monotonic()
            deaths = [t for t in deaths if now - t < RESTART_WINDOW_SECONDS] + [now]
            if len(deaths) > self._max_restarts:
                self.state = EngineState.FAILED
                raise EngineFailed(
                    f"the engine died {len(deaths)} times in ten minutes; giving up "
                    "(LORAPLEX_MAX_ENGINE_RESTARTS)"
                )
            pause = pause_before_restart(len(deaths))
            log.error(
                "restart %d of %d of the engine in %g s", len(deaths), self._max_restarts, pause
            )
            await asyncio.sleep(pause)

    async def stop(self) -> None:
        """Stop the engine and every process it started."""
        self.state = EngineState.STOPPED
        await self._discard_client()
        await asyncio.to_thread(kill_child_processes)

    def condemn(self, why: str) -> None:
        """Mark the engine as unusable and restart it. Any thread may call this."""
        if client := self._client:
            client.condemn(why)

    def require_ready(self) -> None:
        """Raise `Unavailable` if the engine can't answer requests now."""
        if self.state is not EngineState.READY or self._client is None or self._client.errored:
            raise NotServing(
                f"{_WHY_NOT.get(self.state, 'the engine died')}; try again in a moment"
            )

    def _require_client(self) -> EngineClient:
        self.require_ready()
        assert self._client is not None
        return self._client

    async def require_progress(self) -> None:
        """Raise `Unavailable` if the engine makes no progress, not even when asked for a token."""
        await self._require_client().require_progress()

    async def probe(self) -> None:
        """Generate one token and check it. Raises `Unavailable` if that fails."""
        await self._require_client().probe()

    async def call_workers(self, method: str, *arguments: object) -> list[Any]:
        """Return all workers' answers to a call. Raises `Unavailable` if there is none."""
        client = self._require_client()
        try:
            return await client.call_workers(method, *arguments)
        except Exception as error:
            self.require_ready()
            raise Unavailable(f"the engine refuses: {map_exception(error).message}") from error

    async def abort(self, version: VersionRecord) -> None:
        """End the requests on a version: running ones with their text so far, and waiting ones."""
        if self._client is not None:
            await self._client.abort(version)

    def ids_in_use(self) -> set[int]:
        """Return the ids of the versions that unfinished requests use, as the server knows them."""
        return self._client.ids_in_use() if self._client else set()

    async def ask(
        self, text: str, max_tokens: int, version: VersionRecord | None, path: Path | None
    ) -> ProbeAnswer:
        """Have the base, or a loaded version, answer a probe. Raises `Unavailable` if it can't."""
        return await self._require_client().ask(text, max_tokens, version, path)

    async def _start(self) -> None:
        # Building waits for the engine's process. In a thread, so that HTTP answers meanwhile.
        self._client = EngineClient(await _in_daemon_thread(self._build_client))
        self._on_phase("engine")
        self.longest_prompt_characters = longest_prompt_characters(self._client.llm)
        await self._client.unless_dead(
            _init_app_state(self._client.llm, self.app_state, self._arguments)
        )
        await self._client.warm_up()
        self._on_phase("warm-up")
        self.generation += 1
        self.state = EngineState.READY

    def _build_client(self) -> AsyncLLM:
        config = _engine_config(self._arguments)
        self._on_phase("configuration")
        return _start_engine(config, self._fork_server)

    async def _discard_client(self, *, at_once: bool = False) -> None:
        """Shut the engine down in a thread, so that HTTP answers meanwhile. It takes seconds."""
        client, self._client = self._client, None
        if client is not None:
            client.end_tasks()
            await asyncio.to_thread(client.shut_down, self._stop_seconds, at_once=at_once)


def pause_before_restart(num_deaths: int) -> float:
    """Return how long to wait before a restart, in seconds.

    A cause may last for some time, such as a full disk, or a GPU whose memory isn't free yet. It
    must not use up all restarts within a moment.
    """
    return RESTART_PAUSES_SECONDS[min(num_deaths, len(RESTART_PAUSES_SECONDS)) - 1]


def _engine_config(arguments: Namespace) -> VllmConfig:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext

    return AsyncEngineArgs.from_cli_args(arguments).create_engine_config(
        UsageContext.OPENAI_API_SERVER
    )


def _start_engine(config: VllmConfig, fork_server: EngineForkServer | None) -> AsyncLLM:
    from vllm.platforms import current_platform
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM

    wanted = config.model_config.max_model_len
    # If there are several workers, vLLM itself binds each to a NUMA node of its own.
    alone_on_cpu = current_platform.is_cpu() and config.parallel_config.world_size == 1
    with (
        environment.threads(cpu.openmp_variables(cpu.read_machine()) if alone_on_cpu else {}),
        fork_server.used_for(config) if fork_server else contextlib.nullcontext(),
    ):
        client = AsyncLLM.from_vllm_config(config, usage_context=UsageContext.OPENAI_API_SERVER)
    if client.logger_manager:
        take_out_lora_info(client.logger_manager.stat_loggers)
    if (fitted := config.model_config.max_model_len) < wanted:
        log.warning(
            "prompt and answer together may have %d tokens, not the base's %d: the KV cache holds "
            "no more (LORAPLEX_KV_CACHE_GIB)",
            fitted,
            wanted,
        )
    return client


async def _init_app_state(client: AsyncLLM, state: State, arguments: Namespace) -> None:
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state

    await client.reset_mm_cache()
    await init_app_state(client, state, arguments, await client.get_supported_tasks())
    state.openai_serving_models.lora_requests = LeasedAdapters()
    follow_versions(state)
    stream_plainly(state)
    tokenize_in_turns(client.renderer)


async def _in_daemon_thread(function: Callable[[], T]) -> T:
    """Call a function in a thread that doesn't keep the process from ending."""
    loop, result = asyncio.get_running_loop(), asyncio.Future[T]()

    def settle(settle_result: Callable[[Any], None], value: object) -> None:
        if not result.cancelled():
            settle_result(value)

    def work() -> None:
        try:
            settled: tuple[Callable[[Any], None], object] = result.set_result, function()
        except BaseException as error:
            settled = result.set_exception, error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(settle, *settled)

    threading.Thread(target=work, name="engine-start", daemon=True).start()
    return await result
