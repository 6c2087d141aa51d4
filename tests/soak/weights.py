"""The weights of a content: random ones of rank 2 in the first layers' MLPs, made of its number.

They change the base's answers so much that each content has an answer of its own.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtest.drive.random_adapters import LlamaShape, make_adapter


@dataclass(frozen=True)
class MlpShape(LlamaShape):
    """The MLPs of a Llama. Some of its small matrices allow for no large change."""

    def modules(self) -> dict[str, tuple[int, int]]:
        """Return the features into and out of each linear layer of a block's MLP."""
        modules = super().modules().items()
        return {name: shape for name, shape in modules if name.startswith("mlp.")}


LAYERS, RANK, SIZE = 3, 2, 0.24
RECIPE = f"MLPs of {LAYERS} layers, rank {RANK}, size {SIZE}"
"""What golden answers depend on besides the number."""


def files_of(content: int) -> dict[str, bytes]:
    """Return the files of an adapter with this content, by their names."""
    with tempfile.TemporaryDirectory() as parent:
        directory = Path(parent) / "adapter"
        make_adapter(directory, MlpShape(layers=LAYERS), rank=RANK, seed=content, size=SIZE)
        return {file.name: file.read_bytes() for file in sorted(directory.iterdir())}


def metadata_of(content: int) -> dict[str, Any]:
    """Return what a version with this content is registered with."""
    return {"content": content, "recipe": RECIPE}
