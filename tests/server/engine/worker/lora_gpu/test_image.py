"""Images of adapters' files: what goes where, in which chunks, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from server.engine.worker.lora_cpu.files import AdapterFile, Projection
from server.engine.worker.lora_gpu.image import AdapterImage, make_image
from server.engine.worker.lora_gpu.weights import LayerWeights

FEATURES, RANK = 32, 16


def layer(*outputs: int) -> LayerWeights:
    a = [torch.zeros(3, 1, RANK, FEATURES, dtype=torch.float16) for _ in outputs]
    return LayerWeights(a, [torch.zeros(3, 1, out, RANK, dtype=torch.float16) for out in outputs])


class Adapter:
    """A file with A and B of some projections."""

    def __init__(self, path: Path, **shapes: tuple[int, int, int]) -> None:
        """Take (rank, features, outputs) of each."""
        self.tensors: dict[str, torch.Tensor] = {}
        for name, (rank, features, outputs) in shapes.items():
            self.tensors |= {
                f"{name}.a": torch.randn(rank, features).bfloat16(),
                f"{name}.b": torch.randn(outputs, rank).bfloat16(),
            }
        save_file(self.tensors, path / "adapter_model.safetensors")
        self.file = AdapterFile(path / "adapter_model.safetensors")

    def __getitem__(self, name: str) -> Projection:
        matrices = self.file.matrices
        return Projection(matrices[f"{name}.a"], matrices[f"{name}.b"], 2.0)


def matrices(image: AdapterImage) -> list[torch.Tensor]:
    """What the segments point to, in the image's own words."""
    found = []
    for chunk in image.chunks:
        numbers = torch.from_numpy(image.numbers[chunk.begin : chunk.end].copy())
        for source, _, _, _, _, rows, columns, _ in chunk.segments.tolist():
            part = numbers.view(torch.bfloat16)[source : source + rows * columns]
            found.append(part.view(rows, columns))
    return found


@pytest.mark.parametrize("chunk_bytes", [1, 2000, 1 << 20])
def test_every_matrix_is_in_one_chunk(tmp_path: Path, chunk_bytes: int) -> None:
    adapter = Adapter(tmp_path, q=(8, FEATURES, 24), v=(12, FEATURES, 8), o=(4, FEATURES, 40))
    layers = [layer(24, 8, 8), layer(40)]
    projections: dict[int, list[Projection | None]] = {
        0: [adapter["q"], None, adapter["v"]],
        1: [adapter["o"]],
    }
    image = make_image(adapter.file, layers, projections, chunk_bytes)
    assert image is not None
    assert image.ranks == [[8, 0, 12], [4]]
    found = matrices(image)
    assert len(found) == len(adapter.tensors)
    for tensor in adapter.tensors.values():
        assert any(torch.equal(tensor, each) for each in found)
    if chunk_bytes == 1:
        assert len(image.chunks) == len(adapter.tensors)
    assert all(chunk.begin < chunk.end <= len(image.numbers) for chunk in image.chunks)


def test_ranks_are_padded_and_b_is_scaled(tmp_path: Path) -> None:
    adapter = Adapter(tmp_path, q=(12, FEATURES, 24))
    image = make_image(adapter.file, [layer(24)], {0: [adapter["q"]]})
    assert image is not None
    (chunk,) = image.chunks
    written = {tuple(fields[3:8]) for fields in chunk.segments.tolist()}
    assert written == {(16, FEATURES, 12, FEATURES, FEATURES), (24, 16, 24, 12, RANK)}
    assert sorted(chunk.scales.tolist()) == [1.0, 2.0]
    assert chunk.segments.dtype == np.int64


def test_files_of_several_types_are_left_to_vllm(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(8, FEATURES), "b": torch.zeros(24, 8).bfloat16()}, path)
    file = AdapterFile(path)
    pair = Projection(file.matrices["a"], file.matrices["b"], 1.0)
    assert make_image(file, [layer(24)], {0: [pair]}) is None


@pytest.mark.parametrize(
    ("shape", "why"),
    [
        ((8, FEATURES + 1, 24), "features in and 24 out"),
        ((8, FEATURES, 25), "features in and 24 out"),
        ((17, FEATURES, 24), "rank 17 is over that of the slots, 16"),
    ],
)
def test_matrices_that_do_not_fit_are_refused(
    tmp_path: Path, shape: tuple[int, int, int], why: str
) -> None:
    adapter = Adapter(tmp_path, q=shape)
    with pytest.raises(ValueError, match=why):
        make_image(adapter.file, [layer(24)], {0: [adapter["q"]]})
