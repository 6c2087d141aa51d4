# mypy: disable-error-code="no-untyped-call"
"""Launches the kernels through one PyTorch operator, which adds all adapters to a wrapped layer.

torch.compile keeps a call of the operator and never looks inside. So the choices made here (the
tile sizes, and whether the kernels are used) may change from one start to the next, and a compiled
model in vLLM's cache stays right.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch.library import Library

from server.engine.worker.lora_gpu import kernels
from server.engine.worker.lora_gpu.steps import TILE_ROWS, max_tiles
from server.engine.worker.lora_gpu.tile_table import Tiles, TileTable, power_of_two
from server.engine.worker.lora_gpu.weights import LayerWeights, Shape

_SCHEMA = (
    "add_lora(Tensor(a!) y, Tensor x, Tensor[] a, Tensor[] b, Tensor[] tiles, Tensor slots, "
    "Tensor rows, Tensor counts, Tensor starts, Tensor ids, Tensor no_lora, Tensor num_groups, "
    "float scale, bool add_inputs) -> ()"
)


class Operators:
    """The kernels and their layers, for all wrappers of a process."""

    def __init__(self) -> None:
        """Begin with no layers. `table` may be replaced before the first batch."""
        self.table = TileTable()
        self.heights: frozenset[int] = frozenset(TILE_ROWS)
        """The heights of the tiles in a step's metadata."""
        self.fallback: Callable[..., None] | None = None
        """The function used instead of the kernels if they have failed the self-check."""
        self._layers: dict[tuple[int, ...], LayerWeights] = {}
        self._library = Library("loraplex", "FRAGMENT")

    def register(self) -> None:
        """Register `torch.ops.loraplex.add_lora`, which lives as long as this object."""
        self._library.define(_SCHEMA)
        for device in ("CUDA", "CPU"):  # the latter for Triton's interpreter
            self._library.impl("add_lora", self.add_lora, device)
        self._library._register_fake("add_lora", lambda *_arguments: None)

    def layer(self, a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> LayerWeights:
        """Return the layer with these stacks.

        Raises:
            ValueError: the kernels can't read the stacks.
        """
        key = (*(t.data_ptr() for t in (*a, *b)), *a[0].shape, *(t.shape[2] for t in b))
        layer = self._layers.get(key)
        if layer is None:
            layer = self._layers[key] = LayerWeights(a, b)
        return layer

    def add_lora(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        a: list[torch.Tensor],
        b: list[torch.Tensor],
        tiles: list[torch.Tensor],
        slots: torch.Tensor,
        rows: torch.Tensor,
        counts: torch.Tensor,
        starts: torch.Tensor,
        ids: torch.Tensor,
        no_lora: torch.Tensor,
        num_groups: torch.Tensor,
        scale: float,
        add_inputs: bool,
    ) -> None:
        """Add the adapters' part for x (rows, features) to y (rows, sum of outputs).

        Args:
            y: Changed in place, but not in rows without an adapter.
            x: The layer's input.
            a: Stacked A of each slice, (slots, 1, rank, features).
            b: Stacked B of each slice, (slots, 1, outputs, rank).
            tiles: The step's tiles for each height of `TILE_ROWS`.
            slots: The slot of each row, -1 for none. Like the next four, part of vLLM's metadata.
            rows: The rows, sorted by slot.
            counts: Rows of each group.
            starts: Where each group begins in `rows`.
            ids: Each group's slot.
            no_lora: True if no row has an adapter. On the host.
            num_groups: Number of groups that the launches must be enough for. On the host.
            scale: Factor of the product.
            add_inputs: Whether to add to y, or to overwrite the slices that an adapter changes.
        """
        if no_lora.item():
            return
        if self.fallback is not None:
            self.fallback(
                y, x, a, b, slots, rows, counts, starts, ids, no_lora, num_groups, scale, add_inputs
            )
            return
        layer = self.layer(a, b)
        chosen = self.table.choose(layer.shape, len(x))
        if chosen.tile_rows not in self.heights:
            raise ValueError(
                f"no tiles of {chosen.tile_rows} rows for a layer of {layer.shape.label}"
            )
        num_slots = min(a[0].shape[0], int(num_groups.item()))
        launch(
            y, x, a[0], b[0], layer, chosen, tiles, rows, num_slots, scale, add_inputs=add_inputs
        )


def launch(
    y: torch.Tensor,
    x: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    layer: LayerWeights,
    chosen: Tiles,
    tiles: Sequence[torch.Tensor],
    rows: torch.Tensor,
    num_slots: int,
    scale: float,
    *,
    add_inputs: bool,
    workspace: torch.Tensor | None = None,
) -> None:
    """Run the two kernels. `num_slots` is the largest number of adapters in the batch.

    Raises:
        ValueError: x or y doesn't fit the layer.
    """
    shape = layer.shape
    check_inputs(y, x, layer)
    num_rows = len(x)
    num_tiles = max_tiles(num_rows, num_slots, chosen.tile_rows)
    tile_table = tiles[TILE_ROWS.index(chosen.tile_rows)]
    part_features, num_parts = split_features(shape, chosen)
    if workspace is None:
        workspace = torch.empty(
            workspace_shape(shape, chosen, num_rows), dtype=torch.float32, device=x.device
        )
    early = {"launch_pdl": True} if chosen.early else {}
    blocks = -(-shape.max_columns // chosen.columns)
    kernels.shrink[(num_tiles, blocks, num_parts)](
        x,
        a,
        workspace,
        rows,
        tile_table,
        layer.ends,
        layer.geometry,
        scale,
        shape.features,
        x.stride(0),
        layer.a_slot_stride,
        layer.ends.stride(0),
        workspace.stride(0),
        workspace.stride(1),
        part_features,
        SLICES=shape.num_slices,
        TILE_ROWS=chosen.tile_rows,
        COLUMNS=chosen.columns,
        FEATURES=chosen.features,
        ALIGNED=layer.aligned,
        EARLY=chosen.early,
        num_warps=chosen.shrink_warps,
        num_stages=chosen.shrink_stages,
        **early,
    )
    blocks = sum(-(-width // chosen.outputs) for width in shape.outputs)
    kernels.expand[(num_tiles, blocks)](
        workspace,
        b,
        y,
        rows,
        tile_table,
        layer.ends,
        layer.geometry,
        shape.max_rank,
        y.stride(0),
        layer.ends.stride(0),
        workspace.stride(0),
        workspace.stride(1),
        num_parts,
        SLICES=shape.num_slices,
        PARTS=power_of_two(num_parts),
        TILE_ROWS=chosen.tile_rows,
        OUTPUTS=chosen.outputs,
        RANKS=chosen.ranks,
        ALIGNED=layer.aligned,
        ADD=add_inputs,
        EARLY=chosen.early,
        num_warps=chosen.expand_warps,
        num_stages=chosen.expand_stages,
        **early,
    )


def split_features(shape: Shape, chosen: Tiles) -> tuple[int, int]:
    """Return each part's features (a multiple of `chosen.features`) and the number of parts."""
    part = -(-shape.features // chosen.parts)
    part = -(-part // chosen.features) * chosen.features
    return part, -(-shape.features // part)


def workspace_shape(shape: Shape, chosen: Tiles, num_rows: int) -> tuple[int, int, int]:
    """Return the shape of the float32 numbers from shrink to expand: (parts, rows, columns)."""
    return split_features(shape, chosen)[1], num_rows, shape.max_columns


def check_inputs(y: torch.Tensor, x: torch.Tensor, layer: LayerWeights) -> None:
    """Check the tensors that the model passes.

    Raises:
        ValueError: x or y doesn't fit the layer.
    """
    expected = (len(x), sum(layer.shape.outputs))
    if x.dim() != 2 or x.shape[1] != layer.shape.features or tuple(y.shape) != expected:
        raise ValueError(
            f"LoRA on x {tuple(x.shape)} and y {tuple(y.shape)}: the layer has {layer.shape.label}"
        )
    if not x.dtype == layer.dtype or x.stride(1) != 1 or y.stride(1) != 1:
        raise ValueError(f"LoRA of {layer.dtype} on x {x.dtype} {x.stride()}, y {y.stride()}")


@functools.cache
def operators() -> Operators:
    """Return the process's operators, registered as `torch.ops.loraplex.add_lora`."""
    made = Operators()
    made.register()
    return made
