"""Builds the wheel: `python -m tests.release.wheel DIRECTORY`, or `make wheel`.

It is built of a copy of the files that git tracks. A folder `build/` that an earlier build left in
the working tree would otherwise bring removed modules back.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("server", "adapters_registry", "training", "loadtest")
SOURCES = (*PACKAGES, "pyproject.toml", "README.md", "LICENSE", "NOTICE")


def tracked(*folders: str) -> list[str]:
    """Return the paths of the files that git tracks, as they are in the working tree."""
    command = ["git", "ls-files", "-z", "--", *folders]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def build(target: Path) -> Path:
    """Build the wheel into a directory and return its path.

    The same commit gives the same bytes.
    """
    command = ["git", "log", "-1", "--format=%ct"]
    commit_time = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    with tempfile.TemporaryDirectory(prefix="loraplex-wheel-") as folder:
        for name in tracked(*SOURCES):
            copy = Path(folder, name)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, copy)
        subprocess.run(
            [
                *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"),
                *("--no-build-isolation", "--no-cache-dir", "--wheel-dir", str(target), folder),
            ],
            env={**os.environ, "SOURCE_DATE_EPOCH": commit_time.stdout.strip()},
            check=True,
        )
    (wheel,) = target.glob("loraplex-*.whl")
    return wheel


if __name__ == "__main__":
    print(build(Path(sys.argv[1])))
