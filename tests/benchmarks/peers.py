"""How fast and how right are we beside another server? The standing results, in one run.

    python -m tests.benchmarks.peers vllm --vllm-path DIR
    python -m tests.benchmarks.peers llama-cpp --llama-server BINARY --gguf FILE --lora-gguf FILE…
    python -m tests.benchmarks.peers naive-peft

Each round drives both servers with `loraplex loadtest run` on the same scenario, the next round in
the other order; the ratios are those of `loraplex loadtest compare` over all rounds. Both servers
live through the whole run, one idle while the other is driven: a start takes longer than a part,
and rounds close in time have the same neighbours. What the idle one takes of the processor is
measured and told. Reports, logs and the table are left in `--out`. Ctrl-C or SIGTERM stops both
servers, and the table is of what there is by then.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from loadtest.drive.preparation import Weights
from loadtest.drive.random_adapters import LlamaShape
from loadtest.errors import LoadTestError
from loadtest.plan.scenario import Scenario
from loadtest.plan.scenario_file import load_scenario
from loadtest.report.recorded import read_run
from loadtest.started_server import sigterm_interrupts
from server.bundled_base import ensure_bundled_base
from tests.benchmarks.peer_servers import PEERS, Contestant, Started, ours, started
from tests.benchmarks.peer_table import Contest, Part, markdown

SCENARIOS = (
    "single-stream",
    "single-stream-adapter",
    "base-traffic",
    "one-adapter",
    "four-adapters",
    "sixteen-adapters",
    "hundred-adapters-churn",
)
STOP_SECONDS = 30


class Duel:
    """Two servers, driven in turn."""

    def __init__(
        self, first: Started, second: Started, base: Path, out: Path, patience: float
    ) -> None:
        """`patience` is how many seconds a part may take beyond its load's."""
        self.servers, self.base, self.out, self.patience = (first, second), base, out, patience
        self.idle_share = 0.0
        """Of one core, the most that a server took while the other was driven."""

    def play(self, name: str, rounds: int, seconds: float | None, contest: Contest) -> None:
        """All rounds of a scenario, into `contest`."""
        scenario = load_scenario(name)
        contest.refusal = self.servers[1].contestant.refusal(scenario)
        sides = list(zip(self.servers, (contest.ours, contest.peers), strict=True))
        if contest.refusal:
            sides = sides[:1]
        for number in range(1, rounds + 1):
            for server, parts in sides if number % 2 else reversed(sides):
                folder = self.out / f"{scenario_title(name)}-{number}-{title(server)}"
                parts.append(self._part(server, name, scenario, seconds, folder))

    def _part(
        self, server: Started, name: str, scenario: Scenario, seconds: float | None, folder: Path
    ) -> Part:
        other = next(s for s in self.servers if s is not server)
        length = seconds or scenario.duration_seconds
        limit = length + scenario.limits.drain_seconds + self.patience
        began, idle = time.monotonic(), other.cpu_seconds()
        part = drive(server, name, self.base, length, limit, folder)
        share = (other.cpu_seconds() - idle) / (time.monotonic() - began)
        self.idle_share = max(self.idle_share, share)
        return part


def drive(
    server: Started, scenario: str, base: Path, seconds: float, limit: float, folder: Path
) -> Part:
    """One run of the load tester in a process of its own, ended after `limit` seconds."""
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "server", "loadtest", "run", scenario, "--url", server.url]
    command += ["--out", str(folder), "--duration", str(seconds), "--slo", ""]
    command += ["--config", str(base / "config.json"), *server.contestant.loadtest_flags]
    log = folder / "loadtest.log"
    environment = os.environ | {"LORAPLEX_API_KEY": server.key or "none"}
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, env=environment, stdout=file, stderr=file, start_new_session=True
        )
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            return Part(None, f"cut off: not done within {limit:.0f} s")
        finally:
            _end(process)
    if process.returncode in (0, 1):
        try:
            return Part(read_run(folder))
        except LoadTestError as error:
            return Part(None, str(error))
    said = log.read_text(errors="replace").split()
    return Part(None, f"code {process.returncode}: {' '.join(said)[-300:]}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask it to end, which leaves a partial report, and see to it."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def scenario_title(name: str) -> str:
    """A scenario file's or shipped scenario's name."""
    return Path(name).stem.replace("_", "-")


def title(server: Started) -> str:
    """A server's name for files."""
    return server.contestant.name.replace(" ", "-").replace(".", "-").lower()


def play_all(
    contestants: Sequence[Contestant],
    scenarios: Sequence[str],
    rounds: int,
    seconds: float | None,
    patience: float,
    base: Path,
    out: Path,
    console: Console,
) -> str:
    """Start both, drive them, stop them; the table, also of a run that was interrupted.

    Raises:
        LoadTestError: one of them doesn't start.
    """
    contests: list[Contest] = []
    names = [contestant.name for contestant in contestants]
    began, ending = datetime.now(UTC), ""
    load = os.getloadavg()[0]
    idle_share = 0.0
    try:
        with ExitStack() as stack:
            servers = []
            for number, contestant in enumerate(contestants):
                console.print(f"starting {contestant.name}")
                servers.append(stack.enter_context(started(contestant, out / f"{number}.log")))
            duel = Duel(servers[0], servers[1], base, out, patience)
            for name in scenarios:
                contests.append(Contest(scenario_title(name)))
                console.print(f"{contests[-1].scenario}, {rounds} rounds")
                duel.play(name, rounds, seconds, contests[-1])
                idle_share = duel.idle_share
    except KeyboardInterrupt:
        ending = "\n\nInterrupted: this is what there was by then."
    text = markdown(contests, names[0], names[1])
    return (
        f"{began:%Y-%m-%d %H:%M} UTC, {os.cpu_count()} cores, load {load:.1f} before; "
        f"{rounds} rounds; the idle server took {idle_share:.1%} of a core at most."
        f"\n\n{text}{ending}"
    )


def make_weights(names: Sequence[str], base: Path, directory: Path) -> None:
    """What servers want that take no adapters later."""
    shape = LlamaShape.from_config(json.loads((base / "config.json").read_text()))
    place = Weights(directory, shape)
    for scenario in map(load_scenario, names):
        if not scenario.churn.any:
            for name, part in scenario.made_adapters().items():
                place.of(name, 0, part)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument(
        "--scenarios", default=",".join(SCENARIOS), help="names or files, by commas"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, help="of each load; default: the scenario's")
    parser.add_argument(
        "--patience", type=float, default=600, help="seconds a part may take besides"
    )
    parser.add_argument("--base", type=Path, help="default: the bundled one")
    parser.add_argument("--out", type=Path, help="default: a folder in loadtest-runs/")
    parser.add_argument("--env", action="append", default=[], help="NAME=VALUE for the peer")
    parser.add_argument("--vllm-path", type=Path, help="folder of what vLLM's server lacks")
    parser.add_argument("--llama-server", type=Path, help="the binary")
    parser.add_argument("--gguf", type=Path, help="the base")
    parser.add_argument("--lora-gguf", type=Path, nargs="*", default=[], help="adapters, in order")
    arguments = parser.parse_args()
    if arguments.base and arguments.peer == "naive-peft":
        parser.error("naive-peft serves the bundled base alone")
    arguments.base = arguments.base or ensure_bundled_base()
    scenarios = arguments.scenarios.split(",")
    default = Path("loadtest-runs") / f"peers-{arguments.peer}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    out: Path = arguments.out or default
    out.mkdir(parents=True)
    with (
        sigterm_interrupts(),
        tempfile.TemporaryDirectory(prefix="peers-") as directory,
    ):
        place = Path(directory)
        weights = place / "weights"
        weights.mkdir()
        make_weights(scenarios, arguments.base, weights)
        peer = PEERS[arguments.peer](arguments, weights)
        peer.environment.update(pair.split("=", 1) for pair in arguments.env)
        text = play_all(
            (ours(place / "data", arguments.base), peer),
            scenarios,
            arguments.rounds,
            arguments.seconds,
            arguments.patience,
            arguments.base,
            out,
            Console(stderr=True, highlight=False),
        )
    (out / "table.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
