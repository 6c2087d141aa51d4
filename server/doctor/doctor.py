"""Runs all checks of this machine, the quick ones first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from server.doctor import base, machine, network, storage
from server.doctor.finding import Finding, problem
from server.engine.device.device import is_cpu_build
from server.settings import Settings

Checks = Mapping[str, Iterator[Finding]]


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


def examine(checks: Checks) -> Iterator[Finding]:
    """Yield what each check finds. A check that itself fails is a problem; the next one runs."""
    for subject, findings in checks.items():
        try:
            yield from findings
        except Exception as error:
            yield problem(subject, f"this can't be checked: {error or repr(error)}")
