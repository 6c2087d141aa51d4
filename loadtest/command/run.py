"""Runs a scenario, shows the result and writes its report."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console

from loadtest.command.live import LiveView
from loadtest.drive.run import Target, run
from loadtest.outcome.run_record import Run
from loadtest.plan.scenario import Scenario
from loadtest.report import report
from loadtest.report.measures import summarise
from loadtest.report.slo import Objective

PASSED, FAILED, INTERRUPTED = 0, 1, 130


@dataclass(frozen=True)
class Finished:
    """A run and its summary."""

    run: Run
    summary: dict[str, Any]


def measure(scenario: Scenario, target: Target, console: Console) -> Finished:
    """Run a scenario and show its progress. Ctrl-C or SIGTERM ends the load early.

    Raises:
        LoadTestError: the server can't be measured.
        KeyboardInterrupt: Ctrl-C or SIGTERM came before the load.
    """
    finished = uvloop.run(_measure(scenario, target, console))
    return Finished(finished, summarise(finished))


async def _measure(scenario: Scenario, target: Target, console: Console) -> Run:
    stop = asyncio.Event()
    with LiveView(scenario, console) as view, _on_interrupt(view, stop):
        return await run(scenario, target, stop, view)


@contextlib.contextmanager
def _on_interrupt(view: LiveView, stop: asyncio.Event) -> Any:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None

    def interrupt() -> None:
        if view.has_started and not stop.is_set():
            stop.set()
        else:
            task.cancel()

    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in previous:
        loop.add_signal_handler(number, interrupt)
    try:
        yield
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    finally:
        for number, handler in previous.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)


def run_and_report(
    scenario: Scenario,
    target: Target,
    objectives: list[Objective],
    out: Path,
    console: Console,
    show: Callable[[Any], None],
) -> int:
    """Run a scenario, show the table and write the files. Returns the exit code.

    Raises:
        LoadTestError: the server can't be measured.
        KeyboardInterrupt: Ctrl-C or SIGTERM came before the load.
    """
    finished = measure(scenario, target, console)
    write(finished, objectives, out)
    show(report.table(finished.summary))
    for line in report.remarks(finished.summary, objectives):
        show(line)
    show(f"written to {out / report.PAGE}")
    if not finished.run.complete:
        return INTERRUPTED
    return PASSED if report.has_passed(finished.summary, objectives) else FAILED


def write(finished: Finished, objectives: list[Objective], out: Path) -> None:
    """Write the JSON, the CSV and the page."""
    from loadtest.report.page import run_page

    report.write(out, finished.run, finished.summary)
    page = run_page(finished.run, finished.summary, objectives)
    (out / report.PAGE).write_text(page)
