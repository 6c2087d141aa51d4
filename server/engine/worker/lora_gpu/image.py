"""An adapter in host memory: the bytes of its file, and a table that says how to fill a slot.

One call reads it, and no tensors are made of its matrices. The GPU converts, scales and pads them
when they are copied into a slot (`transfer`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from server.engine.worker.lora_cpu.files import AdapterFile, Matrix, Projection
from server.engine.worker.lora_gpu.weights import LayerWeights, round_up

SEGMENT_FIELDS = 8
"""Number of values for one matrix in `Chunk.segments`. `kernels.scatter` explains them."""

CHUNK_BYTES = 16 << 20


@dataclass(frozen=True)
class Chunk:
    """Matrices that are contiguous in the file and are copied together."""

    begin: int
    """Offset in bytes in the file's numbers, as is `end`."""
    end: int
    segments: NDArray[np.int64]
    scales: NDArray[np.float32]


@dataclass(frozen=True)
class AdapterImage:
    """An adapter from which any slot can be filled."""

    numbers: NDArray[np.uint8]
    """The bytes of all matrices of the file, one after the other."""
    type: int
    """Type of the numbers, as numbered in `lora_cpu.files`."""
    chunks: list[Chunk]
    ranks: list[list[int]]
    """The adapter's rank in each layer and slice, 0 if it doesn't change that slice."""


@dataclass(frozen=True)
class _Segment:
    begin: int
    end: int
    fields: tuple[int, ...]
    scale: float


def make_image(
    file: AdapterFile,
    layers: Sequence[LayerWeights],
    projections: Mapping[int, Sequence[Projection | None]],
    chunk_bytes: int = CHUNK_BYTES,
) -> AdapterImage | None:
    """Make the image of a file. `projections` has those of each layer that the adapter changes.

    Returns None if the matrices have several types: then only vLLM's own code can load the file.

    Raises:
        ValueError: a matrix does not fit its layer.
    """
    types = {matrix.type for matrix in file.matrices.values()}
    if len(types) != 1:
        return None
    number_bytes = file.number_bytes(types.copy().pop())
    ranks = [[0] * layer.shape.num_slices for layer in layers]
    segments: list[_Segment] = []
    base = layers[0]
    for index, of_layer in projections.items():
        for i, projection in enumerate(of_layer):
            if projection is not None:
                ranks[index][i] = _check(projection, layers[index], i)
                segments += _segments(base, layers[index], i, projection, number_bytes)
    segments.sort(key=lambda segment: segment.begin)
    chunks = [_chunk(group, number_bytes) for group in _groups(segments, chunk_bytes)]
    return AdapterImage(file.numbers, types.pop(), chunks, ranks)


def _check(projection: Projection, layer: LayerWeights, i: int) -> int:
    """Return the projection's rank, after checking its shapes."""
    shape, (rank, features) = layer.shape, projection.a.shape
    if projection.b.shape != (shape.outputs[i], rank) or features != shape.features:
        raise ValueError(
            f"A {projection.a.shape} and B {projection.b.shape}: the layer has "
            f"{shape.features} features in and {shape.outputs[i]} out"
        )
    if not 0 < rank <= shape.max_rank:
        raise ValueError(f"rank {rank} is over that of the slots, {shape.max_rank}")
    return rank


def _segments(
    base: LayerWeights,
    layer: LayerWeights,
    i: int,
    projection: Projection,
    number_bytes: int,
) -> Iterator[_Segment]:
    shape, (rank, features) = layer.shape, projection.a.shape
    padded = min(int(round_up(np.array([rank], np.int32))[0]), shape.max_rank)
    a_to, b_to = layer.distance(base, i)

    def segment(matrix: Matrix, scale: float, *fields: int) -> _Segment:
        end = matrix.offset + matrix.shape[0] * matrix.shape[1] * number_bytes
        return _Segment(matrix.offset, end, fields, scale)

    yield segment(
        projection.a,
        1.0,
        *(a_to, layer.a_slot_stride, padded, features, rank, features, features),
    )
    out = shape.outputs[i]
    yield segment(
        projection.b,
        projection.scale,
        *(b_to, layer.b_slot_stride(i), out, padded, out, rank, shape.max_rank),
    )


def _groups(segments: Sequence[_Segment], chunk_bytes: int) -> Iterator[list[_Segment]]:
    """Yield groups of matrices in the file's order. A group fits a chunk, or is one matrix."""
    group: list[_Segment] = []
    for segment in segments:
        if group and segment.end - group[0].begin > chunk_bytes:
            yield group
            group = []
        group.append(segment)
    if group:
        yield group


def _chunk(group: Sequence[_Segment], number_bytes: int) -> Chunk:
    begin = group[0].begin
    table = [((each.begin - begin) // number_bytes, *each.fields) for each in group]
    return Chunk(
        begin,
        group[-1].end,
        np.array(table, np.int64).reshape(-1, SEGMENT_FIELDS),
        np.array([each.scale for each in group], np.float32),
    )
