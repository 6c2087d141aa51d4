"""An adapter that is loaded again and again by vLLM's route, as a training loop does with weights.

In `make test-long` the loop is as long as it should be before a release; with `-s` it prints the
memory of the server's and the engine's process.
"""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, linear_regression, median

import httpx
import psutil
import pytest

from adapters_registry.content.adapter_files import CONFIG_FILE
from loadtest.drive.random_adapters import LlamaShape, make_adapter
from tests.long_form import LONG
from tests.real_engine.running_server import RunningServer

NUM_LOADS = 200 if LONG else 12
ADAPTERS = 5
SIZE = 0.04
"""So large that the adapters answer differently, and within what the gate accepts."""
NUM_TOKENS = 12
NOISE = 0.1
"""Bound on the mean difference of log-probabilities between two runs of one model."""
GROWTH_BYTES = 30e6
"""Bound on what a process grows by from the middle third of the loads to the last."""
PROMPT = "The most important thing about the history of the city is"


@dataclass(frozen=True)
class Answer:
    model: str
    tokens: list[str]
    logprobs: list[float]

    def distance(self, other: Answer) -> float:
        """How far the log-probabilities are apart, of the prompt and up to where the texts part."""
        pairs = zip(self.tokens, other.tokens, strict=True)
        same = next((n for n, (a, b) in enumerate(pairs) if a != b), len(self.tokens))
        logprobs = zip(self.logprobs[1:same], other.logprobs[1:same], strict=True)
        return fmean(abs(a - b) for a, b in logprobs)


@pytest.fixture(scope="module")
def adapters(server: RunningServer) -> list[Path]:
    folder = server.data_dir.parent / "loras"
    paths = [folder / f"step-{number}" for number in range(ADAPTERS)]
    for number, path in enumerate(paths):
        make_adapter(path, LlamaShape(), rank=8, seed=number, size=SIZE)
    return paths


class Client:
    """A trainer and its rollouts: it loads weights and asks for answers."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def load(self, name: str, path: Path) -> None:
        body = {"lora_name": name, "lora_path": str(path), "load_inplace": True}
        response = await self._http.post("/v1/load_lora_adapter", json=body)
        assert response.status_code == 200, response.text
        assert response.text == f"Success: LoRA adapter '{name}' added successfully."

    async def answer(self, model: str) -> Answer:
        body = {
            **{
                "model": model,
                "prompt": PROMPT,
                "max_tokens": NUM_TOKENS,
                "min_tokens": NUM_TOKENS,
            },
            **{"temperature": 0, "logprobs": 0, "echo": True},
        }
        response = await self._http.post("/v1/completions", json=body)
        assert response.status_code == 200, response.text
        logprobs = response.json()["choices"][0]["logprobs"]
        return Answer(response.json()["model"], logprobs["tokens"], logprobs["token_logprobs"])


def nearest(answer: Answer, references: list[Answer]) -> int:
    """Which adapter has given an answer; the next one must be clearly another."""
    near = sorted(range(ADAPTERS), key=lambda n: answer.distance(references[n]))
    assert answer.distance(references[near[0]]) < NOISE
    assert answer.distance(references[near[1]]) > 3 * answer.distance(references[near[0]])
    assert answer.distance(references[near[1]]) > NOISE
    return near[0]


class Trainer:
    """Saves each step's weights over those of the step before, as training loops do."""

    def __init__(self, folder: Path, adapters: list[Path]) -> None:
        self.folder, self._adapters = folder, adapters

    def save(self, step: int) -> None:
        shutil.copytree(self._adapters[step % ADAPTERS], self.folder, dirs_exist_ok=True)
        with (self.folder / CONFIG_FILE).open("a") as config:
            # No step has the content of another, or that of a reference.
            config.write(" " * (step + 1))


def thirds(sizes: list[int]) -> list[float]:
    """The median of each third of a process's sizes, one for each load."""
    length = len(sizes) // 3
    return [median(sizes[third * length : (third + 1) * length]) for third in range(3)]


def bytes_of_contents(server: RunningServer) -> int:
    contents = (server.data_dir / "content").rglob("*")
    return sum(file.stat().st_size for file in contents if file.is_file())


async def test_every_answer_is_by_the_weights_of_its_moment_and_memory_stays(
    server: RunningServer, adapters: list[Path]
) -> None:
    headers = {"Authorization": f"Bearer {server.key}"}
    processes = [psutil.Process(server.process.pid), *server.engine_processes()]
    sizes: list[list[int]] = [[] for _ in processes]
    trainer = Trainer(server.data_dir.parent / "loras" / "policy", adapters)
    async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=120) as http:
        client, references = Client(http), []
        for number, path in enumerate(adapters):
            await client.load(f"reference-{number}", path)
            references.append(await client.answer(f"reference-{number}"))
        trainer.save(0)
        await client.load("policy", trainer.folder)
        at_first = bytes_of_contents(server)
        for step in range(1, NUM_LOADS + 1):
            before = asyncio.create_task(client.answer("policy"))
            trainer.save(step)
            await client.load("policy", trainer.folder)
            after, during = await client.answer("policy"), await before
            assert after.model == f"default/policy@{step + 1}"
            assert nearest(after, references) == step % ADAPTERS
            # The one that was asked for meanwhile has either weights, and says which.
            version = int(during.model.rpartition("@")[2])
            assert version in (step, step + 1)
            assert nearest(during, references) == (version - 1) % ADAPTERS
            for process, seen in zip(processes, sizes, strict=True):
                seen.append(process.memory_info().rss)
        rows = (await http.get("/admin/residency")).json()["data"]
        assert len([row for row in rows if row["model"].startswith("default/policy@")]) <= 2
        at_last = bytes_of_contents(server)
        assert (await http.post("/admin/garbage")).status_code == 200
        assert bytes_of_contents(server) <= at_first + 1000, "only the last step's files are kept"
        for name in ("policy", *(f"reference-{number}" for number in range(ADAPTERS))):
            gone = await http.post("/v1/unload_lora_adapter", json={"lora_name": name})
            assert gone.text == f"Success: LoRA adapter '{name}' removed successfully."
        assert (await http.get("/v1/models/policy")).status_code == 404
    print(f"\ncontents: {at_first / 1e6:.0f} MB, after {NUM_LOADS} loads {at_last / 1e6:.0f} MB")
    for process, seen in zip(processes, sizes, strict=True):
        shown = ", ".join(f"{size / 1e6:.0f}" for size in thirds(seen))
        slope = linear_regression(range(len(seen)), seen).slope
        print(f"{process.name()}: {shown} MB by thirds, {slope / 1e3:+.0f} kB a load")
        first, middle, last = thirds(seen)
        assert last - middle < GROWTH_BYTES, (first, middle, last)
