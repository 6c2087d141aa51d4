"""How to make an adapter for any base, and ways to bend one.

None is big: by default two modules of each of two layers at rank 2.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from adapters_registry.check.base import BaseSpec
from adapters_registry.content.adapter_files import CONFIG_FILE, WEIGHTS_FILE

Tensors = dict[str, np.ndarray]

PREFIX = "base_model.model."
Q0 = f"{PREFIX}model.layers.0.self_attn.q_proj"
A, B = f"{Q0}.lora_A.weight", f"{Q0}.lora_B.weight"
FEW_MODULES = tuple(
    f"layers.{n}.{m}" for n in (0, 1) for m in ("self_attn.q_proj", "mlp.down_proj")
)
SIZE = 0.05
"""Of A's and B's entries: changes the base by a few per cent."""


@dataclass(frozen=True)
class Recipe:
    """How to make an adapter: by default a valid one."""

    code: str = ""
    """Why the gate refuses it."""
    rank: int = 2
    ranks: Mapping[str, int] = field(default_factory=dict)
    """Modules (by the end of their names) of another rank."""
    modules: tuple[str, ...] = FEW_MODULES
    config: Mapping[str, Any] = field(default_factory=dict)
    bend: Callable[[Tensors], Tensors] = lambda tensors: tensors
    after: Callable[[Path], object] = lambda directory: None
    """What happens to the finished directory."""
    upload: bool = True
    """Whether an upload can carry it."""

    def make(self, directory: Path, base: BaseSpec, seed: int = 0) -> Path:
        """Write the adapter to a new directory."""
        rng = np.random.default_rng(seed)
        weights = {}
        for name, shape in base.modules.items():
            if not name.endswith(self.modules):
                continue
            rank = next((r for end, r in self.ranks.items() if name.endswith(end)), self.rank)
            for side, size in (
                ("A", (rank, shape.in_features)),
                ("B", (shape.out_features, rank)),
            ):
                values = rng.normal(0, SIZE, size).astype(np.float32)
                weights[f"{PREFIX}{name}.lora_{side}.weight"] = values
        config = {
            "peft_type": "LORA",
            "r": self.rank,
            "lora_alpha": 4,
            "target_modules": ["q_proj"],
        }
        directory.mkdir()
        (directory / CONFIG_FILE).write_text(json.dumps(config | dict(self.config)))
        save_file(self.bend(weights), directory / WEIGHTS_FILE)
        self.after(directory)
        return directory


def each(
    change: Callable[[np.ndarray], np.ndarray], part: str = ""
) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {k: change(v) if part in k else v for k, v in tensors.items()}


def renamed(change: Callable[[str], str]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {change(key): value for key, value in tensors.items()}


def copied(key: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, key: tensors[A].copy()}


def without(key: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {k: v for k, v in tensors.items() if k != key}


def one(key: str, value: float) -> Callable[[Tensors], Tensors]:
    def put(values: np.ndarray) -> np.ndarray:
        values.flat[values.size // 2] = value
        return values

    return each(put, key)


def write(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda directory: (directory / name).write_bytes(content)


def header(length: int, text: bytes) -> bytes:
    return length.to_bytes(8, "little") + text


def rewrite_weights(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    def rewrite(directory: Path) -> None:
        file = directory / WEIGHTS_FILE
        file.write_bytes(change(file.read_bytes()))

    return rewrite


def edit_header(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def edit(content: bytes) -> bytes:
        length = int.from_bytes(content[:8], "little")
        entries = json.loads(content[8 : 8 + length])
        change(entries)
        text = json.dumps(entries).encode()
        return header(len(text), text) + content[8 + length :]

    return rewrite_weights(edit)


def as_bfloat16(directory: Path) -> None:
    """Rewrite the weights as bfloat16, float32's upper half, which numpy can't save."""
    entries, data = {}, b""
    for key, values in load_file(directory / WEIGHTS_FILE).items():
        raw = (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
        offsets = [len(data), len(data) + len(raw)]
        entries[key] = {"dtype": "BF16", "shape": list(values.shape), "data_offsets": offsets}
        data += raw
    text = json.dumps(entries).encode()
    (directory / WEIGHTS_FILE).write_bytes(header(len(text), text) + data)


def link_weights(directory: Path) -> None:
    elsewhere = (directory / WEIGHTS_FILE).rename(directory.with_suffix(".weights"))
    (directory / WEIGHTS_FILE).symlink_to(elsewhere)


def config(code: str, /, **values: Any) -> Recipe:
    return Recipe(code, config=values)


def unreadable(file: str, content: bytes) -> Recipe:
    code = "config_unreadable" if file == CONFIG_FILE else "weights_unreadable"
    return Recipe(code, after=write(file, content))


def damaged(change: Callable[[bytes], bytes]) -> Recipe:
    return Recipe("weights_unreadable", after=rewrite_weights(change))


ALL_MODULES = ("_proj",)
