"""Looks for inputs that reach new code of one target: `make fuzz TARGET=event-stream SECONDS=60`.

    python -m tests.fuzz.run TARGET SECONDS     # with atheris on the path
    python -m tests.fuzz.run TARGET keep        # copy what reached new code to the corpus

Inputs that reach new code go to build/fuzz/TARGET, where a shorter one replaces a longer one that
reaches the same. An input that finds a mistake is written to
build/fuzz/ and ends the run with the traceback.
"""

from __future__ import annotations

import logging
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CORPUS = Path(__file__).parent / "corpus"
MOST_BYTES = 2048


def main() -> None:
    """Fuzz one target. libFuzzer ends the process."""
    name, how = sys.argv[1:3]
    found = ROOT / "build" / "fuzz" / name
    found.mkdir(parents=True, exist_ok=True)
    if how == "keep":
        shutil.copytree(found, CORPUS / name, dirs_exist_ok=True)
        return
    import atheris

    logging.disable()  # of libraries that complain about their input

    with atheris.instrument_imports(include=["adapters_registry", "server", "loadtest"]):
        from tests.fuzz.targets import TARGETS
    options = [
        f"-max_len={MOST_BYTES}",
        f"-max_total_time={int(how)}",
        "-timeout=30",
        "-print_final_stats=1",
        f"-artifact_prefix={found.parent}/{name}-",
    ]
    folders = [str(found), str(CORPUS / name)]
    atheris.Setup([sys.argv[0], *options, *folders], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
