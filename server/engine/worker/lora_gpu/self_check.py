"""Checks that the kernels compute correctly on this GPU, before any request uses them.

Each wrapped shape is tried with every choice of tile sizes that it can get, and the result is
compared with a plain product in float32. All memory that the kernels must not read holds NaN, so
that a single wrong read shows: a slot that no row uses, the numbers behind an adapter's rank, x of
base rows, and the workspace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch

from server.engine.worker.lora_gpu.metadata import RowMetadata
from server.engine.worker.lora_gpu.operators import launch, workspace_shape
from server.engine.worker.lora_gpu.steps import group_rows
from server.engine.worker.lora_gpu.tile_table import Tiles, TileTable
from server.engine.worker.lora_gpu.weights import ALIGNED_ELEMENTS, LayerWeights, Shape, SlotRanks

Launch = Callable[..., None]

TOLERANCE = 1e-2
"""Largest error, relative to the norms of a row and of what is added to it. bfloat16 alone causes
about 3e-3."""

_SLOTS = 4
_UNUSED_SLOT = 3
_SEED = 7


@dataclass(frozen=True)
class Trial:
    """A layer with random adapters, and a batch over it."""

    layer: LayerWeights
    a: list[torch.Tensor]
    b: list[torch.Tensor]
    ranks: list[list[int]]
    x: torch.Tensor
    y: torch.Tensor
    slots: np.ndarray
    metadata: RowMetadata


def failure(
    table: TileTable,
    shapes: Iterable[Shape],
    dtype: torch.dtype,
    device: torch.device | str,
    run: Launch = launch,
) -> str | None:
    """Return what is wrong, as part of a sentence, or None if every shape is correct."""
    for shape in shapes:
        tried: set[Tiles] = set()
        for num_rows, chosen in table.variants(shape).items():
            if chosen in tried:
                continue
            tried.add(chosen)
            try:
                wrong = _compare(make_trial(shape, chosen.tile_rows, dtype, device), chosen, run)
            except Exception as error:
                wrong = (
                    f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
                )
            if wrong is not None:
                return f"{shape.label}, up to {num_rows} rows: {wrong}"
    return None


def make_trial(
    shape: Shape, tile_rows: int, dtype: torch.dtype, device: torch.device | str
) -> Trial:
    """Make a trial with the cases that differ for the kernels.

    One adapter has the full rank, one a smaller rank, and one changes only the last slice. The
    batch has full tiles, partly filled tiles, and base rows.
    """
    random = torch.Generator(device="cpu").manual_seed(_SEED)

    def normal(*size: int, std: float = 1.0) -> torch.Tensor:
        return (torch.randn(size, generator=random, device="cpu") * std).to(dtype)

    most = shape.max_rank
    some = max(1, most * 3 // 4 - 1)
    ranks = [
        [most] * shape.num_slices,
        [some] * shape.num_slices,
        [0] * (shape.num_slices - 1) + [min(most, 8)],
        [most] * shape.num_slices,
    ]

    def unread(*size: int) -> torch.Tensor:
        return torch.full(size, float("nan"), dtype=dtype, device="cpu")

    a = [unread(_SLOTS, 1, most, shape.features) for _ in shape.outputs]
    b = [unread(_SLOTS, 1, out, most) for out in shape.outputs]
    for slot in range(_UNUSED_SLOT):
        for i, rank in enumerate(ranks[slot]):
            padded = min(-(-rank // ALIGNED_ELEMENTS) * ALIGNED_ELEMENTS, most)
            a[i][slot, 0, :padded], b[i][slot, 0, :, :padded] = 0, 0
            a[i][slot, 0, :rank] = normal(rank, shape.features, std=shape.features**-0.5)
            b[i][slot, 0, :, :rank] = normal(shape.outputs[i], rank, std=max(rank, 1) ** -0.5)
    slots = np.concatenate(
        [
            np.full(tile_rows + 3, 0),
            np.tile([2, -1, 1], tile_rows // 2),  # mixed row by row, as when decoding
        ]
    ).astype(np.int32)
    x, y = normal(len(slots), shape.features), normal(len(slots), sum(shape.outputs))
    x[torch.from_numpy(slots < 0)] = float("nan")
    a, b = [each.to(device) for each in a], [each.to(device) for each in b]
    layer = LayerWeights(a, b)
    in_slots = SlotRanks([layer], _SLOTS)
    for slot, of_slices in enumerate(ranks):
        in_slots.set(slot, [of_slices])
    metadata = RowMetadata(_SLOTS, len(slots) + 5, device, [_SLOTS + 1])
    metadata.update(group_rows(slots))
    return Trial(layer, a, b, ranks, x.to(device), y.to(device), slots, metadata)


def reference(trial: Trial) -> torch.Tensor:
    """Return the adapters' part of the output in float32, zero for base rows."""
    delta = torch.zeros(trial.y.shape, device=trial.y.device)
    for slot in range(_UNUSED_SLOT):
        rows = torch.from_numpy(np.flatnonzero(trial.slots == slot)).to(trial.x.device)
        column = 0
        for i, width in enumerate(trial.layer.shape.outputs):
            rank = trial.ranks[slot][i]
            product = trial.x[rows].float() @ trial.a[i][slot, 0, :rank].float().T
            delta[rows, column : column + width] = product @ trial.b[i][slot, 0, :, :rank].float().T
            column += width
    return delta


def _compare(trial: Trial, chosen: Tiles, run: Launch) -> str | None:
    shape = trial.layer.shape
    expected, before = reference(trial), trial.y.clone()
    workspace = torch.full(
        workspace_shape(shape, chosen, len(trial.x)),
        float("nan"),
        dtype=torch.float32,
        device=trial.x.device,
    )
    run(
        trial.y,
        trial.x,
        trial.a[0],
        trial.b[0],
        trial.layer,
        chosen,
        trial.metadata.tiles,
        trial.metadata.vllm.token_indices_sorted_by_lora_ids,
        _SLOTS,
        1.0,
        add_inputs=True,
        workspace=workspace,
    )
    base = torch.from_numpy(trial.slots < 0).to(trial.y.device)
    if not torch.equal(trial.y[base], before[base]):
        return "rows without an adapter were changed"
    off = (trial.y.float() - before.float() - expected)[~base].norm(dim=1)
    size = expected[~base].norm(dim=1) + before[~base].float().norm(dim=1)
    error = (off / size).max().item()
    if error < TOLERANCE:  # false for NaN, too
        return None
    return f"a row is off by {error:.1e} of its norm, more than {TOLERANCE:.0e}"
