"""What CI runs: the make targets, with nothing skipped for want of a program."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
MAKEFILE = (ROOT / "Makefile").read_text()


@pytest.mark.parametrize(
    ("program", "test"),
    [
        ("promtool", "tests/helm/test_monitoring.py::test_promtool_takes_every_expression"),
        ("chromium", "tests/real_engine/browser/test_restart.py"),
    ],
)
@pytest.mark.parametrize(("ci", "code"), [("", 0), ("true", 1)])
def test_a_missing_program_fails_the_run_in_ci(program: str, test: str, ci: str, code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test],
        cwd=ROOT,
        env={**os.environ, "CI": ci, "PATH": "/nowhere"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert f"{program} isn't installed" in done.stdout


def test_the_run_keeps_what_python_compiles(tmp_path: Path) -> None:
    """It leaves compiling to the first import, and each engine imports thousands of files."""
    question = "import sys; print(sys.dont_write_bytecode)"
    programs = {
        "make": f"#!/bin/sh\nexec {sys.executable} -c '{question}'\n",
        "apt-get": "#!/bin/sh\n",
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(
        [ROOT / ".ci" / "run"],
        env={**os.environ, "PATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["False", "False"]


def test_the_workflow_calls_make_targets_that_exist_on_every_python_that_is_supported() -> None:
    job = WORKFLOW["jobs"]["check"]
    project = (ROOT / "pyproject.toml").read_text()
    assert 'requires-python = ">=3.11,<3.13"' in project
    assert job["strategy"]["matrix"]["python"] == ["3.11", "3.12"]
    commands = "\n".join(step.get("run", "") for step in job["steps"])
    called = set(re.findall(r"make ([\w-]+)", commands + (ROOT / ".ci" / "run").read_text()))
    assert {"lint", "test", "docs", "coverage"} <= called
    assert called <= set(re.findall(r"^([\w.-]+):", MAKEFILE, re.MULTILINE))


def test_make_help_lists_every_target_that_says_what_it_does() -> None:
    done = subprocess.run(
        ["make", "--no-print-directory", "help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    described = set(re.findall(r"^([\w.-]+):.*## ", MAKEFILE, re.MULTILINE))
    assert {line.split()[1] for line in done.stdout.splitlines()} == described


def test_every_target_for_people_says_what_it_does() -> None:
    phony = re.search(r"^\.PHONY: ((?:.*\\\n)*.*)$", MAKEFILE, re.MULTILINE)
    assert phony is not None
    described = set(re.findall(r"^([\w.-]+):.*## ", MAKEFILE, re.MULTILINE))
    assert set(phony[1].replace("\\", "").split()) == described
