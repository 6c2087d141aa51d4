"""Copies of the base's own tensors in an adapter's file: PEFT saves embeddings beside LoRA weights.

Copies that are equal to the base's are dropped before the files are stored. One that differs in any
value was trained, and stays, so that the gate refuses it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from adapters_registry.check.key_names import KEY, PREFIX
from adapters_registry.check.norms import checkpoint_files
from adapters_registry.check.weights import (
    Tensor,
    Values,
    make_header,
    read_header,
    read_metadata,
)

MAX_HEADER_BYTES = 100 << 20
"""Of a base's file."""
_CHUNK = 4 << 20
"""Values that are compared at a time; bytes that are copied at a time."""
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def find_copies(weights: Path, base: Path | None) -> list[str]:
    """Return the keys of an adapter's file whose tensors equal the base's, in the base's type.

    What can't be read has no copies: the gate says what is wrong with it.
    """
    if base is None:
        return []
    try:
        others = {
            key: tensor for key, tensor in read_header(weights).items() if not KEY.fullmatch(key)
        }
        if not others:
            return []
        of_base = {
            name: tensor
            for file in checkpoint_files(base)
            for name, tensor in read_header(file, MAX_HEADER_BYTES).items()
        }
        return [key for key, tensor in others.items() if _is_equal(tensor, _named(key, of_base))]
    except (OSError, ValueError, RecursionError):
        return []


def drop(weights: Path, keys: list[str]) -> None:
    """Write an adapter's file again without these tensors. All other bytes stay as they are.

    Raises:
        OSError: it can't be written.
    """
    kept = {key: tensor for key, tensor in read_header(weights).items() if key not in keys}
    entries = ((key, tensor.dtype, tensor.shape, tensor.num_bytes) for key, tensor in kept.items())
    header = make_header(entries, read_metadata(weights))
    scratch = weights.with_suffix(".without-copies")
    with weights.open("rb") as source, scratch.open("wb") as target:
        target.write(header)
        for tensor in kept.values():
            _copy(source, tensor, target)
    scratch.replace(weights)


def _named(key: str, of_base: Mapping[str, Tensor]) -> Tensor | None:
    """Return the base's tensor that an adapter's key names; a tied head is the embedding."""
    name = key.removeprefix(PREFIX)
    return of_base.get(name) or (of_base.get(_EMBEDDING) if name == _HEAD else None)


def _is_equal(tensor: Tensor, of_base: Tensor | None) -> bool:
    if of_base is None or tensor.shape != of_base.shape:
        return False
    if not (tensor.is_float and of_base.is_float):
        return False
    count = math.prod(tensor.shape)
    for start in range(0, count, _CHUNK):
        length = min(_CHUNK, count - start)
        own, known = (each.load_range(start, length) for each in (tensor, of_base))
        if not np.array_equal(rounded(own, of_base.dtype), known):
            return False
    return True


def rounded(values: Values, dtype: str) -> Values:
    """Return float32 values as the nearest ones of another type."""
    if dtype == "F16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).astype(np.float32)
    if dtype == "BF16":
        bits = values.view(np.uint32).astype(np.uint64)
        bits += 0x7FFF + ((bits >> 16) & 1)  # to the nearest, and to the even one of two
        return (bits & 0xFFFF0000).astype(np.uint32).view(np.float32)
    return values


def _copy(source: BinaryIO, tensor: Tensor, target: BinaryIO) -> None:
    source.seek(tensor.offset)
    left = tensor.num_bytes
    while left:
        part = source.read(min(_CHUNK, left))
        left -= target.write(part)
