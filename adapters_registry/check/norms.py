"""The norms of the base's weights, with which an adapter's changes are compared."""

from __future__ import annotations

import json
import logging
import math
import threading
from pathlib import Path

import numpy as np

from adapters_registry.check.weights import Tensor, read_header

log = logging.getLogger(__name__)

SAMPLE_ROWS = 64
"""How many rows of a weight are read. On the bundled base the result is within 6 % of the whole
weight's norm. On an 8B base 150 MB are read instead of 16 GB."""
UNKNOWN_RMS = 0.5
"""The assumed root mean square of a weight's entries if the checkpoint does not show it, because it
is not here yet or is quantised. No linear layer of a known model has as much."""


class WeightNorms:
    """Frobenius norms of the weights of a checkpoint, sampled at the first question."""

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory
        self._norms: dict[str, float] = {}
        self._lock = threading.Lock()

    def of(self, module: str, num_entries: int) -> float:
        """Return the norm of a module's weight, or a generous guess if it is not known."""
        with self._lock:
            if not self._norms and self._directory is not None:
                self._norms = _sample(self._directory)
        return self._norms.get(module) or UNKNOWN_RMS * math.sqrt(num_entries)


def _sample(directory: Path) -> dict[str, float]:
    norms = {}
    try:
        for file in checkpoint_files(directory):
            for key, tensor in read_header(file, max_bytes=100 << 20).items():
                if key.endswith(".weight") and tensor.is_float and len(tensor.shape) == 2:
                    norms[key.removesuffix(".weight")] = _norm(tensor)
    except (OSError, ValueError) as error:
        log.warning("the norms of the base's weights cannot be measured: %s", error)
    return norms


def checkpoint_files(directory: Path) -> list[Path]:
    """Return a checkpoint's safetensors files, in Transformers' layout: one file, or an index."""
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        names = set(json.loads(index.read_text())["weight_map"].values())
        return [directory / name for name in sorted(names)]
    file = directory / "model.safetensors"
    return [file] if file.is_file() else []


def _norm(weight: Tensor) -> float:
    rows = weight.load_rows(SAMPLE_ROWS).astype(np.float64)
    return float(np.sqrt(np.mean(rows * rows) * math.prod(weight.shape)))
