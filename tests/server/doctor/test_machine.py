"""Checks of the machine, on machines that are described here."""

import platform
from pathlib import Path

import pytest

from server.doctor import machine
from server.doctor.finding import Finding, Severity
from server.settings import Settings

VERSION_FILE = """NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Tue Jan 1 2026
GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)
"""


def only(findings: object) -> Finding:
    (finding,) = list(findings)  # type: ignore[call-overload]
    assert isinstance(finding, Finding)
    return finding


def test_this_platform_is_known() -> None:
    found = only(machine.check_platform())
    assert found.severity is Severity.OK
    assert platform.python_version() in found.text


def test_another_platform_is_a_problem() -> None:
    found = only(machine.check_platform("Linux", "riscv64"))
    assert found.severity is Severity.PROBLEM
    assert "riscv64" in found.text
    assert found.remedy == "use Linux on x86-64"


def test_installed_packages_are_compared_with_what_is_required() -> None:
    wanted = ["pytest", "no-such-package>=1", "httpx==0.0.1", 'nothing==1; extra == "gpu"']
    found = only(machine.check_packages("cpu", wanted))
    assert found.severity is Severity.PROBLEM
    assert "no-such-package is missing" in found.text
    assert "but ==0.0.1 was tested" in found.text
    assert "nothing" not in found.text
    assert "loraplex[cpu]" in found.remedy
    assert "nothing is missing" in only(machine.check_packages("gpu", wanted)).text


def test_the_installed_packages_are_those_that_are_required() -> None:
    assert only(machine.check_packages("cpu", ["pytest>=1"])).severity is Severity.OK


@pytest.mark.parametrize(
    ("reason", "severity"), [("", Severity.OK), ("there is no C compiler", Severity.WARNING)]
)
def test_without_a_compiler_adapters_are_slower_on_cpu(reason: str, severity: Severity) -> None:
    found = only(machine.check_compiler(is_cpu=True, why_no_kernel=lambda: reason))
    assert found.severity is severity
    assert reason in found.text
    assert bool(found.remedy) == bool(reason)


def test_the_kernel_is_compiled_for_real() -> None:
    assert only(machine.check_compiler(is_cpu=True)).severity is Severity.OK


def test_without_a_compiler_a_gpu_has_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(machine.check_compiler(is_cpu=False)).severity is Severity.OK
    monkeypatch.setenv("PATH", "/nowhere")
    found = only(machine.check_compiler(is_cpu=False))
    assert found.severity is Severity.PROBLEM
    assert "apt-get install gcc" in found.remedy


def test_the_drivers_version_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "version"
    file.write_text(VERSION_FILE)
    assert machine.driver_version(file) == "570.86.15"
    file.write_text("something else")
    assert machine.driver_version(file) == "of unknown version"
    monkeypatch.setenv("PATH", "/nowhere")
    assert machine.driver_version(tmp_path / "none") == ""


@pytest.mark.parametrize(
    ("is_cpu", "version", "works", "severity", "text"),
    [
        (True, "", False, Severity.OK, "computes on CPU"),
        (True, "570.1", False, Severity.WARNING, "make serve ENGINE=gpu"),
        (False, "", False, Severity.PROBLEM, "make serve ENGINE=cpu"),
        (False, "470.1", False, Severity.PROBLEM, "update the driver"),
        (False, "570.1", True, Severity.OK, "570.1"),
    ],
)
def test_driver_and_packages_must_fit(
    is_cpu: bool, version: str, works: bool, severity: Severity, text: str
) -> None:
    found = only(machine.check_driver(is_cpu=is_cpu, version=version, cuda_works=lambda: works))
    assert found.severity is severity
    assert text in found.text + found.remedy


def test_few_open_files_are_a_warning() -> None:
    found = only(machine.check_limits(Settings(), 256, 0))
    assert found.severity is Severity.WARNING
    assert "256" in found.text
    assert "ulimit" in found.remedy
    for files in (65536, -1):
        assert only(machine.check_limits(Settings(), files, 0)).severity is Severity.OK
    assert machine.open_files_limit() > 0


@pytest.mark.parametrize(
    ("shared_bytes", "severity"), [(64 << 20, Severity.WARNING), (2 << 30, Severity.OK)]
)
def test_workers_need_shared_memory(shared_bytes: int, severity: Severity) -> None:
    shards = Settings(engine_args=("--tensor-parallel-size", "2"))
    _, found = machine.check_limits(shards, 65536, shared_bytes)
    assert (found.subject, found.severity) == ("shared memory", severity)


def test_shared_memory_that_is_not_there(tmp_path: Path) -> None:
    assert machine.shared_memory_bytes(tmp_path / "none") == 0
    assert machine.shared_memory_bytes(tmp_path) > 0
