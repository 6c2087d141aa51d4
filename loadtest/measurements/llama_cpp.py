"""How fast are we beside llama.cpp's server on the same CPU, with the same model and adapters?

    python -m loadtest.measurements.llama_cpp OUR_URL OUR_KEY PEER_URL

The peer is `llama-server -m base.gguf --lora a0.gguf … --lora a3.gguf --lora-init-without-apply
-np 16`. Its adapters are those that `python -m loadtest.drive.random_adapters DIRECTORY` makes,
converted to GGUF. Both servers run all the time. Requests go to one at a time, in turn, and each
round gives one ratio.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from loadtest.drive.http_client import HttpClient
from loadtest.drive.random_adapters import LlamaShape
from loadtest.drive.server_kind import chosen_lora
from loadtest.errors import LoadTestError
from loadtest.measurements.lora_overhead import register_adapters
from loadtest.measurements.measured_server import Generation, MeasuredServer

ROUNDS = 3
TOKENS_IN, TOKENS_OUT = 32, 64
PHASES = {
    # name: requests at once, adapters among them
    "16 streams, base": (16, 0),
    "16 streams, one adapter": (16, 1),
    "16 streams, four adapters": (16, 4),
    "single stream, base": (1, 0),
    "single stream, adapter": (1, 1),
}


@dataclass(frozen=True)
class LlamaCpp:
    """llama.cpp's server, which numbers its adapters."""

    client: HttpClient

    async def seconds_of(self, adapters: list[int | None], prompts: list[list[int]]) -> float:
        """Send these requests at once; None asks the base. Returns the seconds that they take."""
        start = time.perf_counter()
        pairs = zip(adapters, prompts, strict=True)
        await asyncio.gather(*(self._generate(adapter, prompt) for adapter, prompt in pairs))
        return time.perf_counter() - start

    async def _generate(self, adapter: int | None, prompt: list[int]) -> None:
        body: dict[str, Any] = {
            "prompt": prompt,
            "n_predict": TOKENS_OUT,
            "ignore_eos": True,
            "temperature": 0,
            "cache_prompt": False,
            "lora": chosen_lora(adapter),
        }
        answer = await self.client.json("POST", "/completion", json=body)
        if answer["tokens_predicted"] != TOKENS_OUT:
            raise LoadTestError(f"the peer generated {answer['tokens_predicted']} tokens")


async def main(url: str, key: str, peer_url: str) -> None:
    """Measure, and print the table."""
    rng = np.random.default_rng()
    speeds: dict[str, list[tuple[float, float]]] = defaultdict(list)
    async with (
        MeasuredServer.connect(url, key) as server,
        HttpClient.connect(peer_url, "") as client,
    ):
        peer = LlamaCpp(client)
        base, names = await server.admin.base(), await register_adapters(server, LlamaShape())
        for round_ in range(ROUNDS + 1):  # the first only warms up
            for phase, (num_requests, num_adapters) in PHASES.items():
                prompts = rng.integers(1000, 30_000, (num_requests, TOKENS_IN)).tolist()
                chosen = [i % num_adapters if num_adapters else None for i in range(num_requests)]
                ours = await server.seconds_of(
                    [
                        Generation(base if adapter is None else names[adapter], prompt, TOKENS_OUT)
                        for adapter, prompt in zip(chosen, prompts, strict=True)
                    ]
                )
                theirs = await peer.seconds_of(chosen, prompts)
                if round_:
                    tokens = num_requests * TOKENS_OUT
                    speeds[phase].append((tokens / ours, tokens / theirs))
    table = Table("tokens/s", "Loraplex", "llama.cpp", "ratio")
    for phase, pairs in speeds.items():
        ours, theirs = (median(side) for side in zip(*pairs, strict=True))
        ratio = median(a / b for a, b in pairs)
        table.add_row(phase, f"{ours:.0f}", f"{theirs:.0f}", f"{ratio:.2f}")
    Console().print(table)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:4]))
