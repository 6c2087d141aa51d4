"""Keeps one vLLM engine alive: starts it, notices its death, restarts it, stops it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import threading
import time
import uuid
from argparse import Namespace
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import psutil
from starlette.datastructures import State

from adapters_registry.records.catalog import VersionRecord
from server.engine import cpu, environment
from server.engine.arguments import engine_arguments, step_tokens
from server.engine.device import defaults
from server.engine.device.device import read_device
from server.engine.errors import map_exception
from server.engine.interface import Endpoint, EngineFailed, EngineState, ProbeAnswer
from server.engine.loading import AdapterLoading
from server.engine.lora_info import take_out_lora_info
from server.engine.metering import meter
from server.engine.openai import LeasedAdapters, lora_request, make_endpoints
from server.engine.probe import answer
from server.errors import Unavailable
from server.settings import Settings

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine.async_llm import AsyncLLM

T = TypeVar("T")

log = logging.getLogger(__name__)

WATCH_INTERVAL_SECONDS = 0.25
PROBE_SECONDS = 15.0
PROBE_CACHE_SECONDS = 1.0
WARM_UP_SECONDS = 600.0
RESTART_WINDOW_SECONDS = 600.0
STOP_SECONDS = 1.0

_MOST_LOGPROBS = 20
"""vLLM's own bound for a request."""
_WARM_UP_SCHEMA = '{"type": "object", "properties": {"a": {"type": "string"}}}'
_WHY_NOT = {
    EngineState.STARTING: "the engine is starting",
    EngineState.RESTARTING: "the engine died and is being restarted",
    EngineState.FAILED: "the engine can't be started",
    EngineState.STOPPED: "the server is shutting down",
}


class EngineSupervisor(AdapterLoading):
    """The `Engine` of `interface`, made of vLLM's AsyncLLM and its OpenAI handlers."""

    def __init__(self, settings: Settings, base: str, content_path: Callable[[str], Path]) -> None:
        """Parse the arguments (`SettingsError` if one is wrong); nothing is started yet."""
        self.state = EngineState.STARTING
        self.generation = 0
        self.app_state = State()
        self.endpoints: Mapping[str, Endpoint] = make_endpoints(content_path)
        device = read_device()
        self._arguments: Namespace = engine_arguments(settings, base, device)
        tokens = step_tokens(self._arguments, device)
        default_running = defaults.max_running(device, self._arguments.max_num_seqs)
        self.max_running = settings.max_running or default_running
        self.prefill_tokens = defaults.prefill(
            device, settings.prefill_tokens, tokens
        ).tenant_tokens
        self._stop_seconds = defaults.stop_seconds(device)
        self._max_restarts = settings.max_engine_restarts
        self._client: AsyncLLM | None = None
        self._probe: asyncio.Task[None] | None = None
        self._probed_at = -math.inf
        self._poisoned = False

    async def run(self, on_ready: Callable[[], None]) -> None:
        """Start the engine and keep it up until cancelled; `on_ready` is called after each start.

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
                await self._watch()
            self.state = EngineState.RESTARTING
            self._discard_client()
            now = time.monotonic()
            deaths = [t for t in deaths if now - t < RESTART_WINDOW_SECONDS] + [now]
            if len(deaths) > self._max_restarts:
                self.state = EngineState.FAILED
                raise EngineFailed(
                    f"the engine died {len(deaths)} times in ten minutes; giving up "
                    "(LORAPLEX_MAX_ENGINE_RESTARTS)"
                )
            log.error("the engine died; restart %d of %d", len(deaths), self._max_restarts)

    def stop(self) -> None:
        """Stop the engine and every process it started."""
        self.state = EngineState.STOPPED
        self._discard_client()
        kill_child_processes()

    def require_ready(self) -> None:
        """Raise `Unavailable` unless requests are answered."""
        if self.state is not EngineState.READY or self._client is None or self._client.errored:
            raise Unavailable(
                f"{_WHY_NOT.get(self.state, 'the engine died')}; try again in a moment"
            )

    def _require_client(self) -> AsyncLLM:
        self.require_ready()
        assert self._client is not None
        return self._client

    async def probe(self) -> None:
        """Have one token generated, and check it; raise `Unavailable` if that fails.

        Probes that come together share one, and a good one counts for a second.
        """
        self.require_ready()
        if time.monotonic() - self._probed_at < PROBE_CACHE_SECONDS:
            return
        if self._probe is None or self._probe.done():
            self._probe = asyncio.create_task(self._generate_one_token())
        try:
            await asyncio.shield(self._probe)
        except TimeoutError:
            raise Unavailable(f"the engine gave no token within {PROBE_SECONDS:g} s") from None
        except Exception as error:
            raise Unavailable(f"the engine can't answer: {map_exception(error).message}") from error

    async def call_workers(self, method: str, *arguments: object) -> list[Any]:
        """Each worker's answer to a call; raise `Unavailable` if there is none."""
        client = self._require_client()
        try:
            return await _unless_dead(client, client.collective_rpc(method, args=arguments))
        except Exception as error:
            self.require_ready()
            raise Unavailable(f"the engine refuses: {map_exception(error).message}") from error

    async def abort(self, version: VersionRecord) -> None:
        """End the requests on a version, with what they have said so far."""
        if (client := self._client) is None or client.errored:
            return
        requests = [
            request_id
            for request_id, adapter in self._adapters_by_request().items()
            if adapter.lora_int_id == version.version_id
        ]
        await client.abort(requests, internal=True)

    def ids_in_use(self) -> set[int]:
        """The versions on which the engine has unfinished requests, as far as the server knows."""
        return {adapter.lora_int_id for adapter in self._adapters_by_request().values()}

    def _adapters_by_request(self) -> dict[str, LoRARequest]:
        if self._client is None:
            return {}
        running = self._client.output_processor.request_states
        return {
            request_id: request.lora_request
            for request_id, request in running.items()
            if request.lora_request
        }

    async def ask(
        self, text: str, max_tokens: int, version: VersionRecord | None, path: Path | None
    ) -> ProbeAnswer:
        """Have the base, or a loaded version, answer a probe; `Unavailable` if it can't."""
        client = self._require_client()
        adapter = lora_request(version, path) if version and path else None
        try:
            return await answer(client, text, max_tokens, adapter)
        except TimeoutError:
            raise Unavailable("the engine didn't answer the probe in time") from None
        except Exception as error:
            raise Unavailable(f"the engine can't answer: {map_exception(error).message}") from error

    async def _start(self) -> None:
        # In a thread: building waits for the engine process, and HTTP must answer meanwhile.
        self._client = await _in_daemon_thread(lambda: _build_client(self._arguments))
        meter(self._client)
        await _unless_dead(
            self._client, _init_app_state(self._client, self.app_state, self._arguments)
        )
        await self._warm_up()
        self.generation += 1
        self.state = EngineState.READY

    async def _watch(self) -> None:
        """Return once the engine is dead, or alive but poisoned (it answers with NaN)."""
        while self._client is not None and not (self._client.errored or self._poisoned):
            await asyncio.sleep(WATCH_INTERVAL_SECONDS)

    async def _warm_up(self) -> None:
        """Do what the first request of its kind would wait for, and all streams with it.

        Kernels for log-probabilities and for sampling by top-p and top-k are compiled (on a GPU),
        and a grammar is built.
        """
        from vllm.sampling_params import StructuredOutputsParams

        await self._generate_one_token(WARM_UP_SECONDS)
        await self._generate(WARM_UP_SECONDS, logprobs=_MOST_LOGPROBS, prompt_logprobs=1)
        await self._generate(WARM_UP_SECONDS, temperature=0.8, top_p=0.9, top_k=40, seed=1)
        await self._generate(
            WARM_UP_SECONDS, structured_outputs=StructuredOutputsParams(json=_WARM_UP_SCHEMA)
        )

    async def _generate_one_token(self, seconds: float = PROBE_SECONDS) -> None:
        """A token with a finite log-probability: NaN in the KV cache leaves the process alive."""
        token_logprob = await self._generate(seconds, logprobs=0)
        if not math.isfinite(token_logprob):
            self._poisoned = True
            raise Unavailable("the engine answers with NaN and is being restarted")
        self._probed_at = time.monotonic()

    async def _generate(self, seconds: float, **parameters: Any) -> float:
        """Generate one token; its log-probability, where `logprobs` asks for it."""
        from vllm import SamplingParams

        assert self._client is not None
        sampling = SamplingParams(**{"max_tokens": 1, "temperature": 0.0, **parameters})
        prompt = {"prompt": "Hello"}
        token_logprob = math.nan
        async with asyncio.timeout(seconds):
            async for output in self._client.generate(prompt, sampling, f"probe-{uuid.uuid4()}"):
                for token, entry in zip(
                    output.outputs[0].token_ids, output.outputs[0].logprobs or [], strict=False
                ):
                    token_logprob = entry[token].logprob
        return token_logprob

    def _discard_client(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.shutdown(timeout=self._stop_seconds)
        self._probed_at, self._poisoned = -math.inf, False


def _build_client(arguments: Namespace) -> AsyncLLM:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM

    config = AsyncEngineArgs.from_cli_args(arguments).create_engine_config(
        UsageContext.OPENAI_API_SERVER
    )
    wanted = config.model_config.max_model_len
    # Several workers, each on a NUMA node of its own, are bound by vLLM itself.
    alone_on_cpu = current_platform.is_cpu() and config.parallel_config.world_size == 1
    with environment.threads(cpu.openmp_variables(cpu.read_machine()) if alone_on_cpu else {}):
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


async def _in_daemon_thread(function: Callable[[], T]) -> T:
    """Like `asyncio.to_thread`, but a thread that the end of the process needn't wait for."""
    loop, result = asyncio.get_running_loop(), asyncio.Future[T]()

    def settle(settle_result: Callable[[Any], None], value: object) -> None:
        if not result.cancelled():
            settle_result(value)

    def work() -> None:
        try:
            settled: tuple[Callable[[Any], None], object] = result.set_result, function()
        except BaseException as error:
            settled = result.set_exception, error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, *settled)

    threading.Thread(target=work, name="engine-start", daemon=True).start()
    return await result


async def _unless_dead(client: AsyncLLM, call: Coroutine[Any, Any, T]) -> T:
    """Await a call to the engine, which vLLM would never end if the engine died meanwhile."""
    task = asyncio.create_task(call)
    try:
        while not (await asyncio.wait({task}, timeout=WATCH_INTERVAL_SECONDS))[0]:
            if client.errored:
                raise Unavailable("the engine died; it is being restarted, try again")
        return task.result()
    finally:
        task.cancel()


def kill_child_processes() -> None:
    """Kill what this process has started and is still there, and wait until it is gone."""
    children = psutil.Process().children(recursive=True)
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    psutil.wait_procs(children, timeout=STOP_SECONDS)
