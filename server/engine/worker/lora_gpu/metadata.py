"""Metadata that a step's kernels read: static tensors on the GPU, filled by one copy in each step.

CUDA graphs keep the addresses of the tensors, so they are made once, as parts of one buffer. Some
parts are also vLLM's own metadata (`LoRAKernelMeta`), for the layers that use vLLM's operators.
"""

from __future__ import annotations

import bisect
from collections.abc import Collection, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from vllm.lora.ops.triton_ops.lora_kernel_metadata import LoRAKernelMeta

from server.engine.worker.lora_gpu.steps import (
    TILE_FIELDS,
    TILE_ROWS,
    Groups,
    fill_tiles,
    group_rows,
    max_tiles,
)

NO_ADAPTER = -1


class RowMetadata:
    """The slots of a batch's rows (its tokens, or its sampled positions), grouped."""

    def __init__(
        self,
        num_slots: int,
        max_rows: int,
        device: torch.device | str,
        captured_counts: Sequence[int],
        *,
        tile_rows: Sequence[int] = TILE_ROWS,
    ) -> None:
        """Make the buffers. `captured_counts`: numbers of active adapters that have CUDA graphs."""
        self._num_slots = num_slots
        self._captured_counts = sorted(captured_counts)
        self._tile_rows = tuple(tile_rows)
        sizes = [TILE_FIELDS * max_tiles(max_rows, num_slots, height) for height in tile_rows]
        sizes += [num_slots + 1, num_slots + 1, num_slots + 2, max_rows, max_rows]
        ends = np.cumsum(sizes).tolist()
        self._parts = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
        self._buffer = torch.zeros(sum(sizes), dtype=torch.int32, device=device)
        *tiles, ids, counts, starts, rows, slots = (self._buffer[part] for part in self._parts)
        self.tiles = [part.view(-1, TILE_FIELDS) for part in tiles]
        self.vllm = LoRAKernelMeta(
            token_lora_mapping=slots,
            token_indices_sorted_by_lora_ids=rows,
            active_lora_ids=ids,
            num_tokens_per_lora=counts,
            lora_token_start_loc=starts,
            no_lora_flag_cpu=torch.tensor([False], device="cpu"),
            num_active_loras_cpu=torch.tensor([0], dtype=torch.int32, device="cpu"),
            default_num_active_loras_cpu=torch.tensor(
                [num_slots + 1], dtype=torch.int32, device="cpu"
            ),
            captured_lora_counts=self._captured_counts,
        )
        self.update(group_rows(np.zeros(0, np.int32)))

    def update(self, groups: Groups, heights: Collection[int] = TILE_ROWS) -> None:
        """Copy a batch's metadata to the GPU. Only tiles of these heights are made."""
        self.vllm.no_lora_flag_cpu[0] = not groups.has_adapters
        self.vllm.num_active_loras_cpu[0] = self._graph_count(len(groups.slots))
        host = torch.empty(
            self._buffer.shape,
            dtype=torch.int32,
            device="cpu",
            pin_memory=self._buffer.device.type == "cuda",
        )
        self._fill(host.numpy(), groups, heights)
        # The next step gets other host memory: PyTorch reuses this memory only after the copy.
        self._buffer.copy_(host, non_blocking=True)

    def _fill(self, host: NDArray[np.int32], groups: Groups, heights: Collection[int]) -> None:
        *tiles, ids, counts, starts, rows, slots = (host[part] for part in self._parts)
        for part, height in zip(tiles, self._tile_rows, strict=True):
            if height in heights:
                fill_tiles(part.reshape(-1, TILE_FIELDS), groups, height)
        num_groups, num_rows = len(groups.slots), len(groups.slot_of_row)
        for part, values, rest in (
            (ids, groups.slots, NO_ADAPTER),
            (counts, groups.counts, 0),
            (starts, groups.starts, 0),
        ):
            part[:num_groups], part[num_groups:] = values, rest
        if num_groups:
            starts[num_groups] = num_rows
        rows[:num_rows], rows[num_rows:] = groups.rows, 0
        slots[:num_rows], slots[num_rows:] = groups.slot_of_row, NO_ADAPTER

    def _graph_count(self, num_groups: int) -> int:
        """Return the number of adapters of the captured graph that runs this many groups."""
        place = bisect.bisect_left(self._captured_counts, num_groups)
        if num_groups and place < len(self._captured_counts):
            return self._captured_counts[place]
        return num_groups


class SlotLookup:
    """Finds the slots of many adapter ids at once."""

    def __init__(self, lora_index_to_id: Sequence[int | None]) -> None:
        """Take the id in each slot, None if it is free."""
        held = sorted((lora_id, slot) for slot, lora_id in enumerate(lora_index_to_id) if lora_id)
        self._ids = np.array([lora_id for lora_id, _ in held], np.int64)
        self._slots = np.array([slot for _, slot in held], np.int32)

    def __call__(self, lora_ids: Sequence[int]) -> NDArray[np.int32]:
        """Return the slot of each id, -1 for the id 0.

        Raises:
            KeyError: no slot holds an id.
        """
        ids = np.asarray(lora_ids, np.int64)
        found = np.full(ids.shape, NO_ADAPTER, np.int32)
        wanted = ids > 0
        if not wanted.any():
            return found
        places = np.searchsorted(self._ids, ids[wanted])
        known = places < len(self._ids)
        known[known] = self._ids[places[known]] == ids[wanted][known]
        if not known.all():
            raise KeyError(int(ids[wanted][~known][0]))
        found[wanted] = self._slots[places]
        return found


def index_tensors(
    tokens: NDArray[np.int32], samples: NDArray[np.int32], max_loras: int, vocab_size: int
) -> NDArray[np.int64]:
    """Return the four index tensors of vLLM's base class as rows, as its `convert_mapping` does.

    They are the slots of tokens, the slots of sampled positions, the places of sampled positions in
    logits padded to all slots, and the first row of each token in an embedding's A.
    """
    num_tokens, num_samples = len(tokens), len(samples)
    indices = np.zeros((4, max(num_tokens, num_samples)), np.int64)
    indices[0, :num_tokens] = tokens
    indices[1, :num_samples] = samples
    padded = np.where(samples < 0, max_loras - 1, samples).astype(np.int64)
    indices[2, :num_samples] = padded * num_samples + np.arange(num_samples)
    indices[3, :num_tokens] = np.maximum(tokens, 0).astype(np.int64) * vocab_size
    return indices
