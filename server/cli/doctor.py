"""The command `loraplex doctor`: prints what this machine lacks to serve, and what to do."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from server.cli.console import FAILED, fail
from server.settings import SettingsError, load_settings

EXAMPLES = """Examples:

loraplex doctor

loraplex doctor --base meta-llama/Llama-3.1-8B-Instruct --port 8080
"""


def doctor(engine_args: Iterable[str], **flags: Any) -> None:
    """Print a line for each thing that was checked. Ends with code 1 if there is a problem."""
    logging.basicConfig(level=logging.ERROR, format="%(levelname)s %(message)s")
    from server.doctor.doctor import checks_of, examine
    from server.doctor.finding import Severity, problem

    try:
        settings = load_settings(engine_args=tuple(engine_args) or None, **flags)
        findings = examine(checks_of(settings))
    except SettingsError as error:
        findings = iter([problem("settings", str(error))])
    numbers = dict.fromkeys(Severity, 0)
    for finding in findings:
        numbers[finding.severity] += 1
        print(f"{finding.severity:8} {finding.subject:14} {finding.text}", flush=True)
        if finding.remedy:
            print(f"{'':8} {'':14} -> {finding.remedy}", flush=True)
    found = f"problems: {numbers[Severity.PROBLEM]}, warnings: {numbers[Severity.WARNING]}"
    if numbers[Severity.PROBLEM]:
        fail(found, FAILED)
    print(f"{found}; `loraplex serve` can start")
