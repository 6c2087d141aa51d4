# mypy: disable-error-code="no-untyped-call"
"""Measures how long the kernels take on this machine's GPU, inside a CUDA graph."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np
import torch

from server.engine.worker.lora_gpu.metadata import RowMetadata
from server.engine.worker.lora_gpu.operators import launch
from server.engine.worker.lora_gpu.steps import group_rows
from server.engine.worker.lora_gpu.tile_table import Tiles
from server.engine.worker.lora_gpu.weights import LayerWeights, Shape

_ROUNDS = 7
_MAX_COPIES = 256


class GraphTimer:
    """Times one shape and one batch, with so many copies of the weights that L2 can't hold them.

    In the engine, the base's weights displace an adapter's from that cache between two uses.
    """

    def __init__(
        self, shape: Shape, slots: Sequence[int], num_slots: int, dtype: torch.dtype
    ) -> None:
        """Make random weights and the batch."""
        device = torch.device("cuda")
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        active = len(set(slots)) * 2 * shape.max_rank
        used = active * (shape.features * shape.num_slices + sum(shape.outputs))
        copies = max(2, min(_MAX_COPIES, math.ceil(3 * cache / used)))

        def random(*size: int) -> torch.Tensor:
            return torch.empty(size, dtype=dtype, device=device).normal_(0, 0.02)

        self._a = [
            [random(num_slots, 1, shape.max_rank, shape.features) for _ in shape.outputs]
            for _ in range(copies)
        ]
        self._b = [
            [random(num_slots, 1, out, shape.max_rank) for out in shape.outputs]
            for _ in range(copies)
        ]
        self._layers = [LayerWeights(a, b) for a, b in zip(self._a, self._b, strict=True)]
        self._x, self._y = (random(len(slots), n) for n in (shape.features, sum(shape.outputs)))
        self._metadata = RowMetadata(num_slots, len(slots), device, [num_slots + 1])
        self._metadata.update(group_rows(np.asarray(slots, np.int32)))
        self._num_slots = num_slots

    def microseconds(self, tiles: Tiles) -> float:
        """Return the time of one layer, infinite for sizes that the GPU can't run."""
        try:
            return self._measure(tiles)
        except Exception:  # Triton and CUDA have no common class for "too large"
            torch.cuda.synchronize()
            return math.inf

    def _measure(self, tiles: Tiles) -> float:
        self._run_all(tiles)  # compiles
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._run_all(tiles)
        times: list[float] = []
        for _ in range(_ROUNDS):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(1000 * begin.elapsed_time(end) / len(self._layers))
        return statistics.median(times)

    def _run_all(self, tiles: Tiles) -> None:
        for layer, a, b in zip(self._layers, self._a, self._b, strict=True):
            launch(
                self._y,
                self._x,
                a[0],
                b[0],
                layer,
                tiles,
                self._metadata.tiles,
                self._metadata.vllm.token_indices_sorted_by_lora_ids,
                self._num_slots,
                1.0,
                add_inputs=True,
            )
