"""Runs all checks of this machine, the quick ones first."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Mapping

from server.doctor import base, machine, network, storage
from server.doctor.finding import Finding, problem
from server.engine.device.device import is_cpu_build
from server.settings import Settings

Checks = Mapping[str, Iterator[Finding]]
CHECK_SECONDS = 120.0
"""How long one check may take. All take 25 s on two cores: most of it compiling and imports."""
_END = object()


def checks_of(settings: Settings) -> Checks:
    """Return the checks by name. Each runs when it is iterated."""
    is_cpu = is_cpu_build()
    return {
        "platform": machine.check_platform(),
        "packages": machine.check_packages("cpu" if is_cpu else "gpu"),
        "open files": machine.check_limits(
            settings, machine.open_files_limit(), machine.shared_memory_bytes()
        ),
        "port": network.check_ports(settings),
        "data folder": storage.check_data_folder(settings),
        "files": storage.check_files(settings),
        "database": storage.check_database(settings),
        "origin": storage.check_origin(settings),
        "traces": network.check_traces(settings),
        "compiler": machine.check_compiler(is_cpu=is_cpu),
        "GPU": machine.check_driver(is_cpu=is_cpu, version=machine.driver_version()),
        "base": base.check_base(settings),
    }


def examine(checks: Checks, seconds: float = CHECK_SECONDS) -> Iterator[Finding]:
    """Yield what each check finds. If one fails or takes too long, it's a problem; the next runs.

    A check that takes too long goes on in its thread, and what it finds later isn't yielded.
    """
    for subject, findings in checks.items():
        yield from _within(seconds, subject, findings)


def _within(seconds: float, subject: str, findings: Iterator[Finding]) -> Iterator[Finding]:
    found: queue.SimpleQueue[Finding | object] = queue.SimpleQueue()

    def check() -> None:
        try:
            for finding in findings:
                found.put(finding)
        except Exception as error:
            found.put(problem(subject, f"this can't be checked: {error or repr(error)}"))
        found.put(_END)

    threading.Thread(target=check, name=subject, daemon=True).start()
    deadline = time.monotonic() + seconds
    while True:
        try:
            finding = found.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            yield problem(
                subject,
                f"this can't be checked within {seconds:g} s",
                "something that it asks doesn't answer, or the machine is too busy: try again",
            )
            return
        if not isinstance(finding, Finding):
            return
        yield finding
