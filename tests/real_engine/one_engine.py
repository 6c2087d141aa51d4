"""An engine without a server around it, for what is asked of engines and no client can see."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.bundled_base import ensure_bundled_base
from server.engine.environment import prepare_environment
from server.engine.supervisor import EngineSupervisor
from server.settings import Settings


@dataclass(frozen=True)
class Version:
    """What an engine wants to know of a `VersionRecord`."""

    version_id: int
    public_name: str


@asynccontextmanager
async def running_engine(**settings: Any) -> AsyncIterator[EngineSupervisor]:
    """Start an engine on the bundled base, and end it."""
    base = str(ensure_bundled_base())
    prepare_environment(base, "error", "grouped", Path("var"))
    engine = EngineSupervisor(Settings(**settings), base, Path)
    ready = asyncio.Event()
    run = asyncio.create_task(engine.run(ready.set))
    started = asyncio.create_task(ready.wait())
    try:
        await asyncio.wait({run, started}, return_when=asyncio.FIRST_COMPLETED)
        if run.done():
            run.result()
        yield engine
    finally:
        run.cancel()
        await engine.stop()


async def stream(
    engine: EngineSupervisor,
    num_tokens: int,
    version: Any = None,
    path: Path | None = None,
    **parameters: Any,
) -> AsyncIterator[Any]:
    """Greedy tokens one by one, from the base or an adapter: vLLM's outputs so far."""
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt
    from vllm.sampling_params import RequestOutputKind

    from server.engine.openai import lora_request

    assert engine._client is not None
    sampling = SamplingParams(
        max_tokens=num_tokens,
        temperature=0,
        logprobs=0,
        ignore_eos=True,
        output_kind=RequestOutputKind.DELTA,
        **parameters,
    )
    adapter = lora_request(version, path) if version and path else None
    prompt = TokensPrompt(prompt_token_ids=list(range(100, 120)))
    async for output in engine._client.llm.generate(
        prompt, sampling, f"stream-{uuid.uuid4()}", lora_request=adapter
    ):
        yield output
