"""Runs `kernels/` in Triton's interpreter: a process of its own, with Triton on its path.

Triton must not be installed beside vLLM's CPU build, which would take it for a GPU's. `make test`
puts it into `.triton/`.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = next(folder for folder in HERE.parents if (folder / "pyproject.toml").is_file())
TRITON = ROOT / ".triton"
SECONDS = 900


def test_kernels_in_tritons_interpreter() -> None:
    if find_spec("triton") is None and not (TRITON / "triton").is_dir():
        assert "CI" not in os.environ, "`make test` installs Triton"
        pytest.skip("Triton is not installed: run `make .triton/.installed`")
    paths = [str(TRITON), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", HERE / "kernels"],
        cwd=ROOT,
        env=os.environ
        | {
            "OMP_NUM_THREADS": "1",  # the interpreter computes on one core
            "TRITON_INTERPRET": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        },
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
