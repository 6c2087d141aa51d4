"""The command `loraplex doctor`, in a process of its own: it imports vLLM and sets variables."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.doctor.doctor import checks_of, examine
from server.doctor.finding import Finding, Severity, ok
from server.settings import Settings

BASE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 300,
    "max_position_embeddings": 512,
}


def doctor(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "server", "doctor", *arguments],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def base(tmp_path: Path) -> Path:
    directory = tmp_path / "base"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(BASE))
    return directory


def test_a_machine_that_can_serve(base: Path, tmp_path: Path) -> None:
    done = doctor("--base", str(base), "--port", "0", "--data-dir", str(tmp_path / "var"))
    assert done.returncode == 0, done.stdout + done.stderr
    subjects = {line[9:23].strip() for line in done.stdout.splitlines()}
    assert {"platform", "packages", "port", "disk", "database", "compiler", "GPU"} <= subjects
    assert {"base", "memory"} <= subjects
    assert "adapter slots of rank 16" in done.stdout
    assert "`loraplex serve` can start" in done.stdout
    assert not (tmp_path / "var").exists()


def test_a_base_that_cannot_be_served(base: Path) -> None:
    config = json.dumps(BASE | {"architectures": ["MambaForCausalLM"]})
    (base / "config.json").write_text(config)
    done = doctor("--base", str(base), LORAPLEX_PORT="0")
    assert done.returncode == 1
    assert "problem  base" in done.stdout
    assert "loraplex: problems: 1, warnings:" in done.stderr


def test_a_setting_that_is_unknown() -> None:
    done = doctor(LORAPLEX_MAX_LORA="4")
    assert done.returncode == 1
    assert done.stdout.startswith("problem  settings       LORAPLEX_MAX_LORA is not a setting")


def test_a_check_that_fails_is_a_problem_and_the_next_one_runs() -> None:
    def broken() -> Iterator[Finding]:
        yield ok("disk", "1 TiB is free")
        raise RuntimeError("no such thing")

    _, broke, other = examine({"disk": broken(), "port": iter([ok("port", "8000 is free")])})
    assert (broke.subject, broke.severity) == ("disk", Severity.PROBLEM)
    assert "no such thing" in broke.text
    assert other.subject == "port"


def test_a_check_that_does_not_end_is_not_waited_for() -> None:
    ends = threading.Event()

    def hanging() -> Iterator[Finding]:
        yield ok("disk", "1 TiB is free")
        ends.wait()

    try:
        checks = {"disk": hanging(), "port": iter([ok("port", "8000 is free")])}
        disk, late, other = examine(checks, seconds=0.2)
    finally:
        ends.set()
    assert disk.severity is other.severity is Severity.OK
    assert (late.subject, late.severity) == ("disk", Severity.PROBLEM)
    assert "within 0.2 s" in late.text


def test_every_check_has_a_name() -> None:
    assert len(checks_of(Settings())) >= 12
