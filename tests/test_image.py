"""The Dockerfile, as far as it can be checked without a container engine."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.image import slim
from server.settings import Settings, variable_of

ROOT = Path(__file__).parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
PIN = re.compile(r"^([\w.-]+)(?:\[.*\])?==(\S+)")


def instructions(name: str) -> list[str]:
    return re.findall(rf"^{name} (.*)$", DOCKERFILE, re.MULTILINE)


def pins(*files: str) -> dict[str, str]:
    lines = [line for file in files for line in (ROOT / "requirements" / file).open()]
    found = (match.groups() for line in lines if (match := PIN.match(line)))
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}


@pytest.mark.parametrize("locked", ["cpu", "gpu", "dev", "docs", "cpu-3.12", "dev-3.12"])
def test_the_hashed_locks_are_the_locks(locked: str) -> None:
    hashed, name = ROOT / "requirements" / f"{locked}.hashes.txt", locked.removesuffix("-3.12")
    bundled = ["bundled-base.txt"] if name in ("cpu", "gpu") else []
    wanted = pins(f"{name}.txt", *bundled)
    if locked == "cpu-3.12":
        del wanted["torch"]  # its CPU build for 3.12 wasn't to be had; the Makefile installs it
    assert pins(hashed.name) == wanted, "run make hashes, make hashes-3.12"
    for line in hashed.read_text().splitlines():
        assert re.fullmatch(r"[a-z0-9-]+==\S+ --hash=sha256:[0-9a-f]{64}", line)


def test_stages_and_targets() -> None:
    stages: list[str] = []
    (base,) = re.findall(r"^BASE=(.*)$", "\n".join(instructions("ARG")), re.MULTILINE)
    # With its registry's name, which buildah and podman need.
    assert re.fullmatch(r"docker\.io/library/python:3\.\d+-slim-\w+", base)
    for image, stage in (line.split(" AS ") for line in instructions("FROM")):
        assert image in stages or image == "$BASE"
        stages.append(stage)
    assert {"cpu", "gpu"} <= set(stages)
    for source in re.findall(r"--from=(\S+)", DOCKERFILE):
        assert source in stages
    assert instructions("USER") == ["10001:10001"], "the chart's user"


def test_packages_are_installed_with_hashes_or_are_ours() -> None:
    installs = [run for run in instructions("RUN") if "pip install" in run]
    assert len(installs) == 4
    for run in installs:
        assert "--require-hashes" in run or run.endswith(
            "--no-deps --no-build-isolation --prefix /opt/package ."
        )


def test_the_environment_is_known() -> None:
    known = {variable_of(name) for name in Settings.model_fields}
    assert set(re.findall(r"LORAPLEX_[A-Z_]+", DOCKERFILE)) <= known


def test_the_context_holds_what_is_installed() -> None:
    kept = re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    assert all((ROOT / name).exists() for name in kept)
    project = (ROOT / "pyproject.toml").read_text()
    (packages,) = re.findall(r"^include = \[(.*)\]$", project, re.MULTILINE)
    assert {name.strip(' "*') for name in packages.split(",")} <= set(kept)
    assert {"README.md", "LICENSE", "NOTICE", "pyproject.toml", "requirements"} <= set(kept)


def test_the_health_check_is_python(tmp_path: Path) -> None:
    (check,) = re.findall(r'CMD \["python", "-c", "(.*)"\]', DOCKERFILE)
    environment = {"LORAPLEX_PORT": "1"}  # where nobody listens
    done = subprocess.run(
        [sys.executable, "-c", check], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "Connection refused" in done.stderr


def test_slimming_removes_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    packages = tmp_path / "lib" / "python3.11" / "site-packages"
    gone = (
        *("numpy/_core/tests/test_a.py", "numpy/_core/lib/libnpymath.a", "torch/bin/test_api"),
        *("torch/test/a", "bitsandbytes/libbitsandbytes_cuda128.so", "torch/include/torch.h"),
        *("../../libomptarget.so", "../../libiomp5.dbg", "../../../opt/compiler/include/omp.h"),
    )
    kept = (
        *("torch/bin/torch_shm_manager", "torch/testing/__init__.py", "jinja2/tests.py"),
        *("bitsandbytes/libbitsandbytes_cpu.so", "../../libiomp5.so", "torch/lib/libtorch.so"),
    )
    for name in (*gone, *kept):
        (packages / name).parent.mkdir(parents=True, exist_ok=True)
        (packages / name).touch()
    for unneeded in slim.UNNEEDED:
        for path in slim.find(unneeded, tmp_path, packages):
            slim.remove(path)
    assert [name for name in gone if (packages / name).exists()] == []
    assert [name for name in kept if not (packages / name).exists()] == []


def test_the_gpu_image_keeps_what_only_the_cpu_image_does_without() -> None:
    removed = {u.what for u in slim.UNNEEDED if "gpu" in u.builds}
    assert {"tests of packages", "static libraries"} <= removed
    assert not {"bitsandbytes for CUDA", "PyTorch's C++ headers"} & removed


@pytest.mark.parametrize(
    ("programs", "said"),
    [
        ((), "no docker daemon answers, and buildah isn't installed"),
        (("docker",), "no docker daemon answers, and buildah isn't installed"),
        (("docker", "buildah"), "BASE=IMAGE names a mirror's"),
    ],
)
def test_make_image_says_what_it_lacks(
    programs: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    for name in ("bash", "dirname", "sed"):
        program = shutil.which(name)
        assert program is not None
        (tmp_path / name).symlink_to(program)
    for name in programs:  # each fails, whatever it is asked
        (tmp_path / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        [ROOT / "deploy" / "image" / "build.sh", "cpu"],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert said in done.stderr
