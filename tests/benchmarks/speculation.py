"""What guessed tokens gain: a single stream, and eight, of servers that guess more or fewer.

    python -m tests.benchmarks.speculation [--tokens 0,3,5] [--rounds 3] [--requests 6]

Servers with each number of guesses run on the same machine, and are asked in turn while the others
are idle. Prompts are commands that the demo adapter smart-home has not learned from, each of them
new, and questions to the base that are new as well.
"""

from __future__ import annotations

import argparse
import random
import re
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from tests.real_engine.questions import ask
from tests.real_engine.running_server import RunningServer
from training.data.datasets.smart_home import smart_home

THINGS = ("compass", "sail", "anvil", "loom", "lens", "rope", "kiln", "mill", "plough", "lathe")
QUESTIONS = [
    f"Explain in three sentences {what} a {thing}{end}."
    for what, end in (
        *(("what", " is used for"), ("who invented", ""), ("how to build", "")),
        *(("why people need", ""), ("where to buy", ""), ("how heavy", " is")),
    )
    for thing in THINGS
]
PAGE_SECONDS = 1.1
"""The page of metrics may be a second old."""
LOADS = {
    "smart-home, 1 stream": ("smart-home", 1),
    "smart-home, 8 streams": ("smart-home", 8),
    "base, 1 stream": ("base", 1),
    "base, 8 streams": ("base", 8),
}


def counted(server: RunningServer, name: str) -> float:
    """How many tokens the server's engine has guessed, or guessed right."""
    time.sleep(PAGE_SECONDS)
    page = server.admin("GET", "/metrics").text
    found = re.findall(rf"^vllm:spec_decode_num_{name}_tokens_total{{.*}} (\S+)$", page, re.M)
    return sum(map(float, found))


def asked(server: RunningServer, model: str, streams: int, prompts: list[str]) -> dict[str, float]:
    """Ask all prompts, and return the speed and how many tokens were guessed."""
    before = {name: counted(server, name) for name in ("draft", "accepted")}
    began = time.perf_counter()

    def tokens_of(prompt: str) -> int:
        return int(ask(server, model, prompt, max_tokens=64).usage.completion_tokens)

    with ThreadPoolExecutor(streams) as pool:
        tokens = sum(pool.map(tokens_of, prompts))
    seconds = time.perf_counter() - began
    guessed = {name: counted(server, name) - count for name, count in before.items()}
    return {"speed": tokens / seconds, "tokens": tokens, **guessed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", default="0,3,5")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=6)
    arguments = parser.parse_args()
    numbers = [int(number) for number in arguments.tokens.split(",")]
    commands = [c.messages[0]["content"] for c in smart_home(4000, random.Random(3)).test]
    commands = list(dict.fromkeys(commands))
    random.Random(0).shuffle(commands)
    questions = random.Random(1).sample(QUESTIONS, len(QUESTIONS))
    runs: dict[tuple[str, int], list[dict[str, float]]] = {}
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers = {}
        for number in numbers:
            flags = ("--demo", "--speculation-tokens", str(number), "--kv-cache-gib", "0.5")
            servers[number] = RunningServer(place / f"var{number}", *flags)
            stack.callback(servers[number].stop)
        for server in servers.values():
            server.wait_until_ready()
            for model in ("smart-home", "base"):
                ask(server, model, "Hello")
        for round_number in range(arguments.rounds):
            order = numbers[round_number % len(numbers) :] + numbers[: round_number % len(numbers)]
            for name, (model, streams) in LOADS.items():
                new = commands if model == "smart-home" else questions
                count = arguments.requests if streams == 1 else 2 * arguments.requests
                prompts, new[:count] = new[:count], []
                for number in order:
                    found = asked(servers[number], model, streams, prompts)
                    runs.setdefault((name, number), []).append(found)
    print(table(runs, numbers))


def table(runs: dict[tuple[str, int], list[dict[str, float]]], numbers: list[int]) -> str:
    """Return medians of the rounds, and each round's ratio to the first number of guesses."""
    lines = [
        "| | guesses | output tokens/s | times as many | accepted of guessed | of the answer |"
    ]
    lines.append("|---" * 6 + "|")
    for name in LOADS:
        for number in numbers:
            own, first = runs[name, number], runs[name, numbers[0]]
            ratios = [a["speed"] / b["speed"] for a, b in zip(own, first, strict=True)]
            totals: Any = {key: sum(run[key] for run in own) for key in own[0]}
            shares = ("–", "–")
            if totals["draft"]:
                right = totals["accepted"]
                shares = (f"{right / totals['draft']:.0%}", f"{right / totals['tokens']:.0%}")
            lines.append(
                f"| {name} | {number} | {median(run['speed'] for run in own):.1f} "
                f"| {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) "
                f"| {' | '.join(shares)} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
