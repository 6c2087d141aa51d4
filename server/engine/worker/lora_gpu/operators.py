# mypy: disable-error-code="no-untyped-call"
"""Launches the kernels: one PyTorch operator for all that adapters add to a wrapped layer.

torch.compile keeps a call of the operator as it is and never looks inside. So what is decided here
(tile sizes, whether the kernels are trusted) can differ from one start to the next without a
compiled model in vLLM's cache being wrong.
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
    """The kernels and the layers that they know, for all wrappers of a process."""

    def __init__(self) -> None:
        """Know nothing yet; `table` may be replaced before the first batch."""
        self.table = TileTable()
        self.heights: frozenset[int] = frozenset(TILE_ROWS)
        """Of tiles, those that a step's metadata has."""
        self.fallback: Callable[..., None] | None = None
        """What computes in place of the kernels, once they have failed the self-check."""
        self._layers: dict[tuple[int, ...], LayerWeights] = {}
        self._library = Library("loraplex", "FRAGMENT")

    def register(self) -> None:
        """Make `torch.ops.loraplex.add_lora` of this; it lives as long as this does."""
        self._library.define(_SCHEMA)
        for device in ("CUDA", "CPU"):  # the latter for Triton's interpreter
            self._library.impl("add_lora", self.add_lora, device)
        self._library._register_fake("add_lora", lambda *_arguments: None)

    def layer(self, a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> LayerWeights:
        """What is known of a layer, by its stacks.

        Raises:
            ValueError: stacks that the kernels can't read.
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
        """Add to y (rows, sum of outputs) what adapters make of x (rows, features).

        Args:
            y: Changed in place; rows without an adapter aren't touched.
            x: The layer's input.
            a: Stacked A of each slice, (slots, 1, rank, features).
            b: Stacked B of each slice, (slots, 1, outputs, rank).
            tiles: The step's tiles for each height of `TILE_ROWS`.
            slots: Of each row, -1 for none; with `counts`, `starts` and `ids` vLLM's metadata.
            rows: Sorted by slot.
            counts: Rows of each group.
            starts: Where each group begins in `rows`.
            ids: Each group's slot.
            no_lora: On the host: no row has an adapter.
            num_groups: On the host: for how many groups the launches must be enough.
            scale: Applied to the product.
            add_inputs: Whether to add to y, or to overwrite it where adapters have something.
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
    """Run the two kernels; `num_slots` is the most adapters that the batch can have.

    Raises:
        ValueError: x or y that doesn't fit the layer.
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
    """Features of each part, a multiple of what shrink takes at a time; and how many parts."""
    part = -(-shape.features // chosen.parts)
    part = -(-part // chosen.features) * chosen.features
    return part, -(-shape.features // part)


def workspace_shape(shape: Shape, chosen: Tiles, num_rows: int) -> tuple[int, int, int]:
    """What shrink hands to expand: (parts, rows, columns) in float32."""
    return split_features(shape, chosen)[1], num_rows, shape.max_columns


def check_inputs(y: torch.Tensor, x: torch.Tensor, layer: LayerWeights) -> None:
    """Check what comes from the model.

    Raises:
        ValueError: x or y that doesn't fit the layer.
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
    """The process's operators, registered with PyTorch as `torch.ops.loraplex.add_lora`."""
    made = Operators()
    made.register()
    return made
