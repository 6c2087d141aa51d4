"""How fast is the engine without a server, beside vLLM's own kernels, llama.cpp and the memory?

    python -m tests.benchmarks.engine_alone [--base DIR] [--kernels compiled,stock]
    python -m tests.benchmarks.engine_alone --random-1b DIR
    python -m tests.benchmarks.engine_alone --llama-bench BINARY --gguf FILE...

Each engine runs in a process of its own, one after the other. Without `--base` it is the bundled
one. `--random-1b` writes a base of Llama-3.2-1B's shape to DIR, if it isn't there, and measures it;
`loraplex quantize --base DIR OUTPUT` makes its 4-bit form for `--base`. The second table says where
the time of a single stream's token goes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from adapters_registry.check.base import quantization_of
from server.bundled_base import ensure_bundled_base
from tests.benchmarks.random_base import LLAMA_32_1B, write_random_base

SMALL = {"answer_tokens": 64, "prefill_tokens": 900, "tries": 3}
LARGE = {"answer_tokens": 16, "prefill_tokens": 256, "tries": 2}
LARGE_BYTES = 500_000_000


def measured(base: Path, kernels: str, place: Path) -> dict[str, Any]:
    """Return what an engine with these kernels shows, in a process of its own."""
    given = {
        "base": str(base),
        "data_dir": str(place / "data"),
        "adapters": str(place / "adapters"),
        "kernels": kernels,
        "quantization": quantization_of(json.loads((base / "config.json").read_text())),
        "size": LARGE if weight_bytes(base) > LARGE_BYTES else SMALL,
    }
    command = [sys.executable, "-m", "tests.benchmarks.engine_parts", json.dumps(given)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def weight_bytes(base: Path) -> int:
    """What is read for a token: all weights once."""
    return sum(file.stat().st_size for file in base.glob("*.safetensors"))


def llama_bench(binary: Path, gguf: Path, size: dict[str, int]) -> dict[str, float]:
    """Return llama.cpp's tokens per second by its own benchmark."""
    command = [str(binary), "-m", str(gguf), "-t", str(os.cpu_count()), "-o", "json"]
    command += ["-p", str(size["prefill_tokens"]), "-n", str(size["answer_tokens"])]
    command += ["-r", str(size["tries"])]
    rows = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    names = {True: "prefill, 0 adapters", False: "1 streams, 0 adapters"}
    return {names[row["n_gen"] == 0]: row["avg_ts"] for row in rows}


def table(columns: dict[str, dict[str, float]], unit: str) -> str:
    """Return a table with a row for each name that a column has."""
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    lines = [f"| {unit} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name in names:
        cells = (f"{column[name]:.3g}" if name in column else "–" for column in columns.values())
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path)
    parser.add_argument("--random-1b", type=Path, metavar="DIR")
    parser.add_argument("--kernels", default="compiled,stock")
    parser.add_argument("--llama-bench", type=Path, metavar="BINARY")
    parser.add_argument("--gguf", type=Path, nargs="*", default=[])
    arguments = parser.parse_args()
    base: Path = arguments.base or arguments.random_1b or ensure_bundled_base()
    if arguments.random_1b and not base.is_dir():
        write_random_base(ensure_bundled_base(), LLAMA_32_1B, base)
    speeds, parts = {}, {}
    with tempfile.TemporaryDirectory() as directory:
        for kernels in arguments.kernels.split(","):
            found = measured(base, kernels, Path(directory))
            speeds[kernels], parts[kernels] = found["speeds"], found["parts"]
            bound = found["read_speed"] / weight_bytes(base)
            speeds["what memory allows"] = {"1 streams, 0 adapters": bound}
    for gguf in arguments.gguf:
        size = LARGE if gguf.stat().st_size > LARGE_BYTES else SMALL
        try:
            speeds[f"llama.cpp, {gguf.stem}"] = llama_bench(arguments.llama_bench, gguf, size)
        except subprocess.CalledProcessError as error:
            print(error, file=sys.stderr)  # what was measured until here is still worth a table
    print(table(speeds, "tokens/s"))
    print()
    print(table(parts, "ms of a token"))


if __name__ == "__main__":
    main()
