"""Run in a process of its own: adapters come and go in a real engine of two slots.

Takes a directory for its files; writes what happened as JSON.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import psutil

from loadtest.drive.random_adapters import LlamaShape, make_adapter
from server.errors import Unavailable
from tests.long_form import LONG
from tests.real_engine.one_engine import Version, running_engine, stream

ADAPTERS = 5
CYCLES = 120 if LONG else 40
NUM_TOKENS = 8
SLOTS = 2
LOUD = 0.12
"""The size of adapters that each answer differently."""


class Cycles:
    """What the adapters answer, and what the engine says about them, in one engine's life."""

    def __init__(self, engine: Any, directory: Path) -> None:
        self.engine = engine
        self.directory = directory
        self.ids = itertools.count(1)
        self.adapters: list[Path] = []
        for number in range(ADAPTERS):
            self.adapters.append(directory / f"adapter{number}")
            shape = LlamaShape()
            make_adapter(self.adapters[-1], shape, rank=4 + number, seed=number, size=LOUD)

    async def answer(self, version: Any = None, path: Path | None = None) -> Any:
        """The answer's tokens, and the log-probabilities of prompt and answer."""
        tokens: list[int] = []
        found: dict[str, Any] = {"tokens": tokens, "logprobs": []}
        async for output in stream(self.engine, NUM_TOKENS, version, path, prompt_logprobs=0):
            part = output.outputs[0]
            tokens += part.token_ids
            found["logprobs"] += _logprobs(part.token_ids, part.logprobs)
            if output.prompt_logprobs:
                found["prompt"] = _logprobs(output.prompt_token_ids[1:], output.prompt_logprobs[1:])
        return found

    async def prepare(self, path: Path) -> Version:
        version = Version(number := next(self.ids), f"adapter@{number}")
        await self.engine.prepare(version, path)
        return version

    async def alone(self) -> list[Any]:
        """What the base and each adapter answer, one after the other."""
        answers = [await self.answer()]
        for path in self.adapters:
            version = await self.prepare(path)
            await self.engine.install(version)
            answers.append(await self.answer(version, path))
            await self.engine.evict(version)
        return answers

    async def taking_turns(self) -> list[Any]:
        """(model, answer) while slots change hands, beside one another; the files are gone."""
        copies = [self.directory / f"copy{number}" for number in range(ADAPTERS)]
        for path, copy in zip(self.adapters, copies, strict=True):
            shutil.copytree(path, copy)
        versions = [await self.prepare(copy) for copy in copies]
        for copy in copies:
            shutil.rmtree(copy)
        for version in versions[:SLOTS]:
            await self.engine.install(version)
        found: list[Any] = []
        for turn in range(2 * ADAPTERS):
            leaving, staying, coming = ((turn + n) % ADAPTERS for n in range(3))
            in_slots = [staying, leaving]
            await self._ask([0, *[1 + n for n in in_slots]], versions, copies, found)
            kept = [version.version_id for n, version in enumerate(versions) if n != leaving]
            await self.engine.install(versions[coming], lambda kept=kept: kept)
        self.residency_when_full = await self.residency()
        for version in versions:
            await self.engine.evict(version)
        return found

    async def _ask(self, models: list[int], versions: Any, paths: Any, found: list[Any]) -> None:
        asked = [self.answer(versions[m - 1], paths[m - 1]) if m else self.answer() for m in models]
        found += zip(models, await asyncio.gather(*asked), strict=True)

    async def evicted_while_running(self) -> dict[str, Any]:
        """An eviction and a take-over in the middle of an answer."""
        version = await self.prepare(self.adapters[0])
        other = await self.prepare(self.adapters[1])
        third = await self.prepare(self.adapters[2])
        await self.engine.install(version)
        await self.engine.install(third)
        running = asyncio.create_task(self.answer(version, self.adapters[0]))
        while version.version_id not in self.engine.ids_in_use():
            await asyncio.sleep(0)
        takeover = asyncio.create_task(self.engine.install(other, lambda: [third.version_id]))
        eviction = asyncio.create_task(self.engine.evict(version))
        answer = await running
        await asyncio.gather(takeover, eviction)
        after = await self.answer(other, self.adapters[1])
        residency = await self.residency()
        for left in (other, third):
            await self.engine.evict(left)
        return {"answer": answer, "after": after, "gone": version.version_id, **residency}

    async def refused(self) -> dict[str, Any]:
        """What can't be read, and what was never prepared."""
        broken = self.directory / "broken"
        shutil.copytree(self.adapters[0], broken)
        weights = broken / "adapter_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:100_000])
        messages = {}
        unknown = Version(next(self.ids), "unknown@1")
        for name, call in (
            ("broken", self.prepare(broken)),
            ("missing", self.prepare(self.directory / "missing")),
            ("unknown", self.engine.install(unknown)),
        ):
            try:
                await call
            except Unavailable as error:
                messages[name] = error.message
        await self.engine.evict(unknown)
        return {"messages": messages, **await self.residency()}

    async def memory(self) -> list[int]:
        """The engine's resident bytes, before and after many cycles."""
        manager = self.engine._client.llm.engine_core.resources.engine_manager
        process = psutil.Process(manager.processes[0].pid)
        sizes = []
        for cycle in range(2 * CYCLES + 1):
            if cycle % CYCLES == 0:
                sizes.append(process.memory_info().rss)
            # Twice at once: it is read once.
            version = Version(number := next(self.ids), f"adapter@{number}")
            path = self.adapters[cycle % ADAPTERS]
            await asyncio.gather(*[self.engine.prepare(version, path) for _ in range(2)])
            await self.engine.install(version)
            await self.engine.evict(version)
        return sizes

    async def residency(self) -> dict[str, Any]:
        (answer,) = await self.engine.call_workers("loraplex_residency")
        return dict(answer)


def _logprobs(tokens: Any, entries: Any) -> list[float]:
    return [entry[token].logprob for token, entry in zip(tokens, entries, strict=True)]


async def run(directory: Path) -> dict[str, Any]:
    async with running_engine(max_loras=SLOTS, max_cpu_loras=SLOTS, kv_cache_gib=0.25) as engine:
        cycles = Cycles(engine, directory)
        return {
            "directory": str(directory),
            "alone": await cycles.alone(),
            "taking_turns": await cycles.taking_turns(),
            "when_full": cycles.residency_when_full,
            "evicted_while_running": await cycles.evicted_while_running(),
            "refused": await cycles.refused(),
            "memory": await cycles.memory(),
            "in_the_end": await cycles.residency(),
        }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(run(Path(sys.argv[1])))))
