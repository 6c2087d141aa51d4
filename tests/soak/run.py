"""Soaks a server: `make soak`, `make soak SECONDS=300 ADAPTERS=100`.

The real server with the real engine on the bundled base serves five tenants' adapters while
versions come and go; every answer is checked, and what the server takes is sampled all along. The
fleet and its golden answers stay in `build/soak/`, so that the next soak begins sooner.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.real_engine.running_server import RunningServer
from tests.soak import report
from tests.soak.churn import Churn
from tests.soak.fleet import TENANTS, Fleet
from tests.soak.golden import GoldenAnswers
from tests.soak.load import Load
from tests.soak.preparation import fill_recent_requests, golden_answers, introduce
from tests.soak.report import Afterwards, Report
from tests.soak.sampling import Sampler, Samples
from tests.soak.seeding import seed
from tests.soak.site import Site
from tests.soak.tally import Tally
from tests.soak.truth import Timeline, Truth

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "soak"
RECORDED_SECONDS = 1200.0
"""A soak of so long with the whole fleet writes its report for docs/operations.md."""
MAX_RANK = 8
FLAGS = (
    *("--max-loras", "8", "--max-cpu-loras", "48", "--max-lora-rank", str(MAX_RANK)),
    *("--slot-quantum-seconds", "2", "--garbage-seconds", "20", "--composition-seconds", "60"),
    # The machine may do much else: what is slow isn't a failure here.
    *("--slot-wait-seconds", "900", "--load-seconds", "300", "--source-wait-seconds", "600"),
    *("--preempt-seconds", "0", "--hang-seconds", "600"),
)
START_SECONDS, SETTLE_SECONDS, STOP_SECONDS = 600, 120, 120


@dataclass
class Soak:
    """One soak of a server that runs."""

    seconds: float
    fleet: Fleet
    site: Site
    golden: GoldenAnswers
    folder: Path
    say: Callable[[str], None]
    seed: int = 0
    truth: Truth = field(init=False)
    tally: Tally = field(default_factory=Tally)
    samples: Samples = field(default_factory=Samples)
    until: float = 0.0

    def __post_init__(self) -> None:
        self.truth = Truth(Timeline(self.site.sender.now), self.golden)

    async def run(self) -> None:
        """Ask, change and sample for the whole time; then wait until nothing runs."""
        load = Load(self.site, self.fleet, self.truth, self.tally, self.seed)
        rng = random.Random(self.seed)
        churn = Churn(self.site, self.fleet, self.truth, self.tally, load, rng)
        sampler = Sampler(self.site, self.samples)

        def is_over() -> bool:
            return time.monotonic() > self.until

        for tenant in TENANTS:
            await self.site.limit(tenant, tenant.quota)
        self.until = time.monotonic() + self.seconds
        await self._keep_metrics("metrics-before.txt")
        await sampler.take()
        async with asyncio.TaskGroup() as group:
            group.create_task(load.run(is_over))
            group.create_task(churn.run(is_over))
            group.create_task(sampler.run(is_over))
            group.create_task(self._tell(is_over))
        await sampler.take()
        await self._keep_metrics("metrics-after.txt")

    async def _keep_metrics(self, name: str) -> None:
        """Keep a page of metrics, in which one sees what has grown."""
        (self.folder / name).write_text(await self.site.metrics())

    async def _tell(self, is_over: Callable[[], bool]) -> None:
        """Say now and then how it goes."""
        began = told = time.monotonic()
        while not is_over():
            await asyncio.sleep(1)
            if time.monotonic() - told >= 60:
                told = time.monotonic()
                tally = self.tally
                self.say(
                    f"{told - began:.0f} s: {tally.right:,} right, {len(tally.wrong)} wrong, "
                    f"{len(tally.failed)} failed, {tally.refused.total():,} refused, "
                    f"{tally.changes.total()} changes, {len(tally.failed_changes)} failed"
                )

    def end(self) -> None:
        """End the soak early. There is a report all the same."""
        self.until = 0.0

    async def leases(self) -> int:
        """Return how many leases are held once nothing should run any more."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            held = sum(int(row["leases"]) for row in await self.site.residency())
            if not held or time.monotonic() > deadline:
                return held
            await asyncio.sleep(0.5)

    async def engine_starts(self) -> float:
        """Return how often the engine was started."""
        name = "loraplex_engine_starts_total "
        lines = (await self.site.metrics()).splitlines()
        return sum(float(line.removeprefix(name)) for line in lines if line.startswith(name))


async def soak(
    server: RunningServer,
    fleet: Fleet,
    golden: GoldenAnswers,
    seconds: float,
    folder: Path,
    command: str,
) -> tuple[Report, Samples]:
    """Soak a server, stop it, and return what was found."""
    log_began = server.log.stat().st_size
    async with Site.connect(server) as site:
        one = Soak(seconds, fleet, site, golden, folder, say)
        await fill_recent_requests(site, say)
        await introduce(site, fleet, one.truth, say)
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, one.end)
        began = time.monotonic()
        await one.run()
        lasted = time.monotonic() - began
        leases, starts = await one.leases(), await one.engine_starts()
    exit_code = await asyncio.to_thread(server.terminate, STOP_SECONDS)
    with server.log.open() as log:
        log.seek(log_began)
        errors = [line for line in log if "Traceback" in line or "ERROR" in line]
    after = Afterwards(leases, starts, len(errors), exit_code)
    found = Report(
        command=command,
        machine=report.machine(),
        on=report.today(),
        seconds=round(lasted, 1),
        adapters=fleet.size,
        counts=report.counts_of(one.tally, one.truth, psutil.getloadavg()[2]),
        checks=report.checks_of(one.tally, one.samples, lasted, after),
        rows=report.rows_of(one.samples),
        faults=[*one.tally.faults(), *errors[:5]],
    )
    return found, one.samples


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


def main() -> int:
    """Soak, print the report, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1800.0)
    parser.add_argument("--adapters", type=int, default=500)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    fleet, data_dir = Fleet(asked.adapters), asked.folder / "var"
    seed(data_dir, fleet, MAX_RANK)
    server = RunningServer(data_dir, *FLAGS)
    command = f"make soak SECONDS={asked.seconds:.0f} ADAPTERS={asked.adapters}"
    try:
        golden = golden_answers(fleet, asked.folder / "golden.json", say)
        server.wait_until_ready(START_SECONDS)
        found, samples = asyncio.run(
            soak(server, fleet, golden, asked.seconds, asked.folder, command)
        )
    finally:
        server.stop()
    kept = {"report": found.to_json(), "times": samples.times, "values": samples.values}
    (asked.folder / "last.json").write_text(json.dumps(kept | {"rows": samples.rows}))
    say(f"\n{found.text()}\n")
    if asked.seconds >= RECORDED_SECONDS and asked.adapters >= 500:
        report.RESULTS.write_text(json.dumps(found.to_json(), indent=2) + "\n")
        say("the report is kept: `make docs` shows it in docs/operations.md")
    failures = found.failures()
    say("failed: " + "; ".join(failures) if failures else "all bounds are kept")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
