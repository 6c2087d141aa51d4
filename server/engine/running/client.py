"""Calls to one running engine: the server's own requests, and calls to its workers.

`supervisor.py` keeps the engine alive; a restarted engine gets a new `EngineClient`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
import uuid
from collections.abc import Coroutine
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import psutil

from adapters_registry.records.catalog import VersionRecord
from server.engine.errors import map_exception
from server.engine.grammar.trial import GrammarTrials
from server.engine.interface import ProbeAnswer
from server.engine.openai import lora_request
from server.engine.running.metering import AHEAD, Metering
from server.engine.running.probe import answer
from server.engine.running.progress import Progress
from server.engine.worker.extension import PREPARE
from server.errors import Unavailable
from server.tenancy.meter import current_meter

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine.async_llm import AsyncLLM

T = TypeVar("T")

log = logging.getLogger(__name__)

POLL_SECONDS = 0.25
PROBE_SECONDS = 15.0
PROBE_CACHE_SECONDS = 1.0
RECENT_SECONDS = 5.0
"""If a step ended within this time, the engine makes progress and needs no probe."""
PING_SECONDS = 5.0
"""If the engine is silent for this long, it is asked for a sign of life."""
WARM_UP_SECONDS = 600.0

_MOST_LOGPROBS = 20
"""vLLM's own bound for a request."""
_WARM_UP_SCHEMA = '{"type": "object", "properties": {"a": {"type": "string"}}}'


class EngineClient:
    """One engine, from its start to its death."""

    def __init__(self, llm: AsyncLLM, poll_seconds: float = POLL_SECONDS) -> None:
        """Patch `llm`. `poll_seconds` is how often to check whether the engine died."""
        self.llm, self._poll_seconds = llm, poll_seconds
        self.progress = Progress()
        backend = llm.vllm_config.structured_outputs_config.backend
        self._trials = GrammarTrials(
            lambda: _serialized_tokenizer(llm), refuses=backend in ("auto", "xgrammar")
        )
        self._metering = Metering(llm, self.progress, self._trials, partial(_verify, llm))
        self._probe: asyncio.Task[None] | None = None
        self._ping: asyncio.Task[None] | None = None
        self._poisoned = False
        self._condemned = ""

    @property
    def errored(self) -> bool:
        """Return True if vLLM reports that the engine has died, or if it was condemned."""
        return bool(self.llm.errored or self._condemned)

    def condemn(self, why: str) -> None:
        """Mark the engine as unusable, so that it is restarted. Any thread may call this."""
        self._condemned = why

    async def require_progress(self) -> None:
        """Raise `Unavailable` if the engine makes no progress.

        It makes progress if a step ended in the last seconds. Otherwise it is asked for a token.
        Such a probe may wait for a long step, or for memory that others use, so a step that ends
        meanwhile counts as well. While steps end, a probe only runs in the background, to find out
        whether tokens have become NaN.
        """
        now = time.monotonic()
        if self.progress.seconds_since_step(now) >= RECENT_SECONDS:
            await self._token_or_step(now)
        elif self.progress.seconds_since_finite_token(now) >= RECENT_SECONDS:
            self._start_probe()

    async def _token_or_step(self, asked_at: float) -> None:
        probe = asyncio.create_task(self.probe())
        try:
            while not (await asyncio.wait({probe}, timeout=self._poll_seconds))[0]:
                now = time.monotonic()
                if self.progress.seconds_since_step(now) < now - asked_at:
                    return
            await probe
        finally:
            probe.cancel()

    async def probe(self) -> None:
        """Generate one token and check it. Raises `Unavailable` if that fails.

        Concurrent calls share one probe, and a good result holds for a second.
        """
        if self.progress.seconds_since_finite_token(time.monotonic()) < PROBE_CACHE_SECONDS:
            return
        asked_at, probe = time.monotonic(), self._start_probe()
        try:
            await asyncio.shield(probe)
        except asyncio.CancelledError:
            if not probe.cancelled():
                raise  # who asked has gone away
            raise Unavailable("the engine is given up and restarted; try again") from None
        except TimeoutError:
            now = time.monotonic()
            if self.progress.seconds_since_step(now) > now - asked_at:
                raise Unavailable(f"the engine gave no token within {PROBE_SECONDS:g} s") from None
        except Exception as error:
            raise Unavailable(f"the engine can't answer: {map_exception(error).message}") from error

    async def ask(
        self, text: str, max_tokens: int, version: VersionRecord | None, path: Path | None
    ) -> ProbeAnswer:
        """Have the base, or a loaded version, answer a probe. Raises `Unavailable` if it can't."""
        adapter = lora_request(version, path) if version and path else None
        try:
            return await answer(self.llm, text, max_tokens, adapter)
        except TimeoutError:
            raise Unavailable("the engine didn't answer the probe in time") from None
        except Exception as error:
            raise Unavailable(f"the engine can't answer: {map_exception(error).message}") from error

    async def call_workers(self, method: str, *arguments: object) -> list[Any]:
        """Return all workers' answers. Raises `Unavailable`, or vLLM's errors, if there is none."""
        answers: list[Any] = await self.unless_dead(self.llm.collective_rpc(method, args=arguments))
        if method != PREPARE:  # which is answered although the engine's loop may hang
            self.progress.sign_of_life()
        return answers

    async def abort(self, version: VersionRecord) -> None:
        """End the requests on a version. Running ones end with the text they have so far."""
        if self.errored:
            return
        self._metering.end_waiting(version.version_id)
        requests = [
            request_id
            for request_id, adapter in self._adapters_by_request().items()
            if adapter.lora_int_id == version.version_id
        ]
        await self.llm.abort(requests, internal=True)

    def ids_in_use(self) -> set[int]:
        """Return the ids of the versions that unfinished requests use, as the server knows them."""
        return {adapter.lora_int_id for adapter in self._adapters_by_request().values()}

    async def warm_up(self) -> None:
        """Send one request of each kind that compiles something the first time it is used.

        On a GPU these are kernels for log-probabilities and for sampling by top-p and top-k; a
        grammar is built as well. Otherwise a client's request, and all streams with it, would wait.
        """
        from vllm.sampling_params import StructuredOutputsParams

        await self._generate_one_token(WARM_UP_SECONDS)
        await self._generate(WARM_UP_SECONDS, logprobs=_MOST_LOGPROBS, prompt_logprobs=1)
        await self._generate(WARM_UP_SECONDS, temperature=0.8, top_p=0.9, top_k=40, seed=1)
        await self._generate(
            WARM_UP_SECONDS, structured_outputs=StructuredOutputsParams(json=_WARM_UP_SCHEMA)
        )

    async def watch(self, hang_seconds: float) -> str:
        """Wait until the engine must be restarted, and return the reason.

        The reason is that it died, or answers with NaN, or hangs: it has sent nothing for
        `hang_seconds`, although it was asked for a sign of life. One loop of the engine runs steps
        and answers calls, so if a call isn't answered, no step ends either.
        """
        looked_at = time.monotonic()
        while True:
            await asyncio.sleep(self._poll_seconds)
            now = time.monotonic()
            self.progress.tick(now - looked_at, 2 * self._poll_seconds)
            looked_at = now
            if self._condemned:
                return self._condemned
            if self.errored:
                return "it died"
            if self._poisoned:
                return "it answered with NaN"
            if self.progress.silent_seconds >= hang_seconds:
                return f"it hung: no step ended and no call was answered for {hang_seconds:g} s"
            if self.progress.silent_seconds >= min(PING_SECONDS, hang_seconds / 2):
                self._start_ping()

    async def unless_dead(self, call: Coroutine[Any, Any, T]) -> T:
        """Await a call to the engine. Raises `Unavailable` if it dies, where vLLM would wait on."""
        task = asyncio.create_task(call)
        try:
            while not (await asyncio.wait({task}, timeout=self._poll_seconds))[0]:
                if self.errored:
                    raise Unavailable("the engine died; it is being restarted, try again")
            return task.result()
        finally:
            task.cancel()

    def shut_down(self, stop_seconds: float, *, at_once: bool = False) -> None:
        """End the engine's processes and wait until their memory is free. Blocks: use a thread.

        They have `stop_seconds` to end by themselves. With `at_once` they are killed first, because
        a process that hangs would use up that time.
        """
        manager = self.llm.engine_core.resources.engine_manager
        processes = _with_children([each.pid for each in manager.processes] if manager else [])
        if at_once:
            _kill(processes)
        self.llm.shutdown(timeout=stop_seconds)
        _, alive = psutil.wait_procs(processes, timeout=stop_seconds)
        _kill(alive)
        psutil.wait_procs(alive, timeout=stop_seconds)

    def end_tasks(self) -> None:
        """Cancel this client's own requests, and end all others with an error."""
        from vllm.v1.engine.exceptions import EngineDeadError

        # vLLM does so where it notices the death itself. Of a process that hung and was killed it
        # hears nothing more, and whoever waits for its answer would wait for ever.
        self.llm.output_processor.propagate_error(EngineDeadError())
        self._metering.end_all()
        self._trials.stop()
        for task in (self._probe, self._ping):
            if task is not None:
                task.cancel()

    def _adapters_by_request(self) -> dict[str, LoRARequest]:
        running = self.llm.output_processor.request_states
        return {
            request_id: request.lora_request
            for request_id, request in running.items()
            if request.lora_request
        }

    def _start_probe(self) -> asyncio.Task[None]:
        if self._probe is None or self._probe.done():
            self._probe = asyncio.create_task(self._generate_one_token())
            self._probe.add_done_callback(_seen)
        return self._probe

    def _start_ping(self) -> None:
        if self._ping is None or self._ping.done():
            self._ping = asyncio.create_task(self._answered("loraplex_residency"))
            self._ping.add_done_callback(_seen)

    async def _answered(self, method: str) -> None:
        await self.call_workers(method)

    async def _generate_one_token(self, seconds: float = PROBE_SECONDS) -> None:
        """Generate a token and check that its log-probability is finite.

        NaN in the KV cache leaves the process alive, so nothing else would notice it.
        """
        token_logprob = await self._generate(seconds, logprobs=0)
        if not math.isfinite(token_logprob):
            self._poisoned = True
            raise Unavailable("the engine answers with NaN and is being restarted")
        self.progress.finite_token(time.monotonic())

    async def _generate(self, seconds: float, **parameters: Any) -> float:
        """Generate one token. Returns its log-probability, or NaN if `logprobs` isn't set."""
        from vllm import SamplingParams

        sampling = SamplingParams(**{"max_tokens": 1, "temperature": 0.0, **parameters})
        prompt, name = {"prompt": "Hello"}, f"probe-{uuid.uuid4()}"
        token_logprob = math.nan
        current_meter.set(None)  # a request of the server's own is charged to no tenant
        async with asyncio.timeout(seconds):
            async for output in self.llm.generate(prompt, sampling, name, priority=AHEAD):
                for token, entry in zip(
                    output.outputs[0].token_ids, output.outputs[0].logprobs or [], strict=False
                ):
                    token_logprob = entry[token].logprob
        return token_logprob


def _serialized_tokenizer(llm: AsyncLLM) -> str:
    """Return the base's tokenizer in xgrammar's own format. It takes a moment."""
    import xgrammar

    size = llm.model_config.get_vocab_size()
    info = xgrammar.TokenizerInfo.from_huggingface(llm.get_tokenizer(), vocab_size=size)
    return str(info.serialize_json())


def _verify(llm: AsyncLLM, parameters: SamplingParams) -> None:
    """Raise vLLM's error if the engine would refuse these parameters."""
    config = llm.vllm_config
    parameters.verify(
        config.model_config,
        config.speculative_config,
        config.structured_outputs_config,
        llm.renderer.tokenizer,
    )


def _seen(task: asyncio.Task[None]) -> None:
    """Log a background task's error. A request that waits for the task gets the error as well."""
    if not task.cancelled() and (error := task.exception()):
        log.debug("the engine's probe failed: %s", error)


def _with_children(pids: list[int]) -> list[psutil.Process]:
    processes: list[psutil.Process] = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            processes += [process, *process.children(recursive=True)]
    return processes


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
