"""Is the load tester fast enough, and do its figures agree with vLLM's own client?

    python -m tests.benchmarks.load_tester speed [--rate 2100] [--seconds 10]
    python -m tests.benchmarks.load_tester agreement [--rate 20] [--requests 400] [--runs 3]

Both measure the stub server, in a process of its own on the second core; the tester has the first.
`speed` compares what the tester reports with what the stub itself has seen. `agreement` gives the
same load to vLLM's client and to ours, in turn.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from rich.console import Console
from rich.table import Table

from loadtest.command.run import measure
from loadtest.drive.run import Target
from loadtest.plan.scenario import Scenario
from server.bundled_base import ensure_bundled_base
from tests.loadtest.stub_server import BASE, KEY

PORT = 8117
URL = f"http://127.0.0.1:{PORT}"
TOKENS_IN, TOKENS_OUT = 32, 16


@contextlib.contextmanager
def stub(first_token: float, gap: float) -> Iterator[None]:
    command = [sys.executable, "-m", "tests.loadtest.stub_server", "--port", str(PORT)]
    command += ["--first-token", str(first_token), "--gap", str(gap)]
    process = subprocess.Popen(command)
    os.sched_setaffinity(process.pid, {1})
    try:
        while True:
            with contextlib.suppress(httpx.HTTPError):
                httpx.get(f"{URL}/metrics")
                break
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait()


def scenario(rate: float, seconds: float, tokens_out: int) -> Scenario:
    return Scenario.model_validate(
        {
            "question": "Is the tester fast enough?",
            "seed": 1,
            "duration_seconds": seconds,
            "arrivals": {"process": "poisson", "rate": rate},
            "requests": {
                "input": {"kind": "fixed", "tokens": TOKENS_IN},
                "output": {"kind": "fixed", "tokens": tokens_out},
            },
        }
    )


def speed(rate: float, seconds: float) -> None:
    """Answers come whole after 20 ms; what the tester sees beyond the stub's own times is its."""
    os.sched_setaffinity(0, {0})
    with stub(first_token=0.02, gap=0.0):
        finished = measure(scenario(rate, seconds, 4), Target(URL, KEY), Console(stderr=True))
        headers = {"Authorization": f"Bearer {KEY}"}
        own = np.array(httpx.get(f"{URL}/durations", headers=headers).json()) * 1000
    summary = finished.summary
    seen, tester = summary["latency"]["all"]["e2e"], summary["tester"]
    table = Table("ms", "P50", "P99", "P99.9")
    table.add_row("the stub's own", *(f"{np.percentile(own, p):.2f}" for p in (50, 99, 99.9)))
    table.add_row("the tester's", *(f"{seen[p]:.2f}" for p in ("p50", "p99", "p999")))
    table.add_row("lag", *(f"{tester['lag'][p]:.2f}" for p in ("p50", "p99", "p999")))
    Console().print(table)
    print(
        f"{summary['throughput']['requests_per_second']:.0f} requests/s, "
        f"{summary['requests']['failed']} failed, {tester['cpu_share']:.0%} of a core, "
        f"P99 + {seen['p99'] - np.percentile(own, 99):.2f} ms"
    )


def agreement(rate: float, requests: int, runs: int) -> None:
    found: dict[str, list[tuple[float, float]]] = {}
    with stub(first_token=0.05, gap=0.01):
        for _ in range(runs):
            theirs = vllm_client(rate, requests)
            ours = our_client(rate, requests)
            for name, value in ours.items():
                found.setdefault(name, []).append((value, theirs[name]))
    table = Table("", "ours", "vLLM's", "ratio of each run")
    for name, pairs in found.items():
        ours_, theirs_ = (np.mean(side) for side in zip(*pairs, strict=True))
        ratios = " ".join(f"{a / b:.3f}" for a, b in pairs)
        table.add_row(name, f"{ours_:.2f}", f"{theirs_:.2f}", ratios)
    Console().print(table)


def our_client(rate: float, requests: int) -> dict[str, float]:
    made = scenario(rate, requests / rate, TOKENS_OUT)
    summary = measure(made, Target(URL, KEY), Console(stderr=True)).summary
    latency = summary["latency"]["all"]
    return {
        f"{kind} {name}, ms": latency[kind][name]
        for kind in ("ttft", "tpot", "gap", "e2e")
        for name in ("mean", "p50", "p99")
    }


def vllm_client(rate: float, requests: int) -> dict[str, float]:
    """`vllm bench serve` with random prompts of as many tokens."""
    with tempfile.TemporaryDirectory() as directory:
        code = (
            "import asyncio, argparse; from vllm.benchmarks import serve; "
            "p = argparse.ArgumentParser(); serve.add_cli_args(p); "
            "asyncio.run(serve.main_async(p.parse_args()))"
        )
        command = [sys.executable, "-c", code, "--backend", "openai", "--base-url", URL]
        command += ["--model", BASE, "--tokenizer", str(ensure_bundled_base())]
        command += ["--dataset-name", "random", "--random-input-len", str(TOKENS_IN)]
        command += ["--random-output-len", str(TOKENS_OUT), "--request-rate", str(rate)]
        command += ["--num-prompts", str(requests), "--ignore-eos", "--seed", "1"]
        command += ["--percentile-metrics", "ttft,tpot,itl,e2el", "--metric-percentiles", "50,99"]
        command += ["--save-result", "--result-dir", directory, "--result-filename", "r.json"]
        environment = os.environ | {"OPENAI_API_KEY": KEY, "VLLM_PLUGINS": ""}
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        result: dict[str, Any] = json.loads((Path(directory) / "r.json").read_text())
    names = {"ttft": "ttft", "tpot": "tpot", "gap": "itl", "e2e": "e2el"}
    return {
        f"{ours} {name}, ms": result[f"{name}_{theirs}_ms"]
        for ours, theirs in names.items()
        for name in ("mean", "p50", "p99")
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["speed", "agreement"])
    parser.add_argument("--rate", type=float)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.what == "speed":
        speed(arguments.rate or 2100, arguments.seconds)
    else:
        agreement(arguments.rate or 20, arguments.requests, arguments.runs)


if __name__ == "__main__":
    main()
