"""The wheel: what is in it, and that a clean environment serves from it.

`make wheel` runs the latter, which installs 2.5 GB: the test is skipped unless `WHEEL=install`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from server.bundled_base import ensure_bundled_base
from tests.real_engine.running_server import RunningServer
from tests.release.wheel import PACKAGES, ROOT, build, tracked

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("wheel"))


def test_the_wheel_has_every_file_of_the_packages(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {n for n in archive.namelist() if not n.split("/")[0].endswith(".dist-info")}
    wanted = {name for name in tracked(*PACKAGES) if not name.endswith("RESULTS.md")}
    assert packed == wanted, "see package-data in pyproject.toml"


def test_its_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = message_from_bytes(archive.read(name))
        licences = {Path(n).name for n in archive.namelist() if "/licenses/" in n}
    assert (metadata["Name"], metadata["Version"]) == ("loraplex", PROJECT["version"])
    assert metadata.get_all("Provides-Extra") == ["cpu", "gpu"]
    assert licences == {"LICENSE", "NOTICE"}


@pytest.mark.parametrize("extra", ["cpu", "gpu"])
def test_an_extra_asks_for_the_locked_versions(extra: str) -> None:
    lines = (ROOT / "requirements" / f"{extra}.txt").read_text().splitlines()
    locked = dict(line.split(";")[0].strip().split("==") for line in lines if "==" in line)
    for text in PROJECT["optional-dependencies"][extra]:
        wanted = Requirement(text)
        assert wanted.specifier.contains(locked[wanted.name]), (text, locked[wanted.name])


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean virtual environment with the wheel and its extra `cpu`, which uv resolves."""
    if os.environ.get("WHEEL") != "install":
        pytest.skip("it installs 2.5 GB: make wheel")
    folder = tmp_path_factory.mktemp("clean") / "venv"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    uv = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--link-mode", "copy"]
    uv += ["--python", str(folder / "bin" / "python")]
    for option, variable in (
        ("--find-links", "PIP_FIND_LINKS"),
        ("--extra-index-url", "PIP_EXTRA_INDEX_URL"),
    ):
        for value in os.environ.get(variable, "").split():
            uv += [option, value]
    requirements = ROOT / "requirements"
    uv += ["--constraints", str(requirements / "cpu.txt")]
    uv += ["--overrides", str(requirements / "overrides.txt")]
    subprocess.run([*uv, f"loraplex[cpu] @ {wheel.as_uri()}"], check=True)
    return folder


def test_a_clean_environment_serves(environment: Path, tmp_path: Path) -> None:
    program = environment / "bin" / "loraplex"
    base = ensure_bundled_base()  # of a size of heads that the engine can compute
    checked = subprocess.run(
        [program, "doctor", "--base", base, "--port", "0", "--data-dir", tmp_path / "var"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "ok       packages" in checked.stdout
    server = RunningServer(
        tmp_path / "var", "--base", str(base), "--kv-cache-gib", "0.5", program=program
    )
    try:
        server.wait_until_ready()
        answer = server.client().chat.completions.create(
            model="base", messages=[{"role": "user", "content": "Hello"}], max_tokens=4
        )
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 4
        assert server.terminate() == 0
    finally:
        server.stop()
    installed = list(environment.glob("lib/python3.*/site-packages/server/app.py"))
    assert len(installed) == 1, "it ran the installed package, not this checkout"
