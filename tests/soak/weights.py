"""The weights of a content: random ones of rank 2 in the first layers, made of its number.

They change the base's answers so much that each content has an answer of its own.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from loadtest.drive.random_adapters import LlamaShape, make_adapter

SHAPE = LlamaShape(layers=3)
"""That of the bundled base, as far as weights are changed."""
RANK, SIZE = 2, 0.12
RECIPE = [SHAPE.layers, RANK, SIZE]
"""What golden answers depend on besides the number."""


def files_of(content: int) -> dict[str, bytes]:
    """Return the files of an adapter with this content, by their names."""
    with tempfile.TemporaryDirectory() as parent:
        directory = Path(parent) / "adapter"
        make_adapter(directory, SHAPE, rank=RANK, seed=content, size=SIZE)
        return {file.name: file.read_bytes() for file in sorted(directory.iterdir())}
