"""A layer with adapters in its slots, a batch over it, and what must come out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from vllm.config.lora import LoRAConfig
from vllm.lora.layers import LoRAMapping

from server.engine.worker.lora_gpu.operators import operators
from server.engine.worker.lora_gpu.punica import FusedPunicaWrapper
from server.engine.worker.lora_gpu.weights import LayerWeights, SlotRanks

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float16  # the interpreter knows no bfloat16
BASE = -1
TOLERANCE = 1e-2 if DEVICE == "cuda" else 4e-3


class Layer:
    """Stacked weights as vLLM has them, zero where no adapter has been written."""

    def __init__(
        self, features: int, outputs: Sequence[int], max_rank: int, num_slots: int = 4
    ) -> None:
        self.outputs = tuple(outputs)
        self.a = tuple(torch.zeros(num_slots, 1, max_rank, features, dtype=DTYPE) for _ in outputs)
        self.b = tuple(torch.zeros(num_slots, 1, out, max_rank, dtype=DTYPE) for out in outputs)
        self.known: LayerWeights = operators().layer(self.a, self.b)
        self.in_slots = SlotRanks([self.known], num_slots)
        self.ranks: dict[int, tuple[int, ...]] = {}

    @property
    def width(self) -> int:
        return sum(self.outputs)

    @property
    def features(self) -> int:
        return self.a[0].shape[3]

    def write(self, slot: int, *ranks: int, stale: float = 0.0) -> None:
        """Put an adapter into a slot, one rank a slice; behind its ranks the slot holds `stale`."""
        for a, b, rank in zip(self.a, self.b, ranks, strict=True):
            padded = min(-(-rank // 8) * 8, a.shape[2])
            a[slot], b[slot] = stale, stale
            a[slot, 0, :padded], b[slot, 0, :, :padded] = 0, 0
            a[slot, 0, :rank] = torch.randn(rank, self.features) * self.features**-0.5
            b[slot, 0, :, :rank] = torch.randn(b.shape[2], rank) * max(rank, 1) ** -0.5
        self.ranks[slot] = ranks
        self.in_slots.set(slot, [ranks])

    def delta(self, x: torch.Tensor, slots: Sequence[int], scale: float = 1.0) -> torch.Tensor:
        """What the adapters add, row by row in float32."""
        delta = torch.zeros(len(x), self.width)
        for row, slot in enumerate(slots):
            column = 0
            for i, width in enumerate(self.outputs):
                if slot != BASE and (rank := self.ranks[slot][i]):
                    a, b = self.a[i][slot, 0, :rank], self.b[i][slot, 0, :, :rank]
                    delta[row, column : column + width] = b.float() @ (a.float() @ x[row].float())
                column += width
        return delta * scale


def make_wrapper(num_slots: int = 4, max_rows: int = 512, **config: bool) -> FusedPunicaWrapper:
    lora_config = LoRAConfig(
        max_loras=num_slots, max_cpu_loras=num_slots, max_lora_rank=64, lora_dtype=DTYPE, **config
    )
    return FusedPunicaWrapper(max_rows, max_rows, DEVICE, lora_config=lora_config)


def take(wrapper: FusedPunicaWrapper, slots: Sequence[int], num_slots: int = 4) -> None:
    """Give a wrapper its next batch."""
    ids = tuple(slot + 1 for slot in slots)
    mapping = LoRAMapping(index_mapping=ids, prompt_mapping=ids, is_prefill=True)
    wrapper.update_metadata(mapping, list(range(1, num_slots + 1)), num_slots + 1, 1000)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape).to(DTYPE)


def check(
    layer: Layer,
    slots: Sequence[int],
    wrapper: FusedPunicaWrapper | None = None,
    scale: float = 1.0,
    num_rows: int | None = None,
) -> None:
    """Apply a batch (padded to `num_rows`, as a captured graph is) and compare every row."""
    wrapper = wrapper or make_wrapper(len(layer.a[0]))
    take(wrapper, slots, len(layer.a[0]))
    x, y = (random(num_rows or len(slots), n) for n in (layer.features, layer.width))
    x[torch.tensor([*slots, *[BASE] * (len(x) - len(slots))]) == BASE] = torch.nan
    before = y.clone()
    wrapper.add_lora_linear(y, x, layer.a, layer.b, scale, layer.outputs)
    expected = layer.delta(x, slots, scale)
    for row in range(len(x)):
        slot = slots[row] if row < len(slots) else BASE
        if slot == BASE:
            assert torch.equal(y[row], before[row]), f"row {row} has no adapter"
        else:
            off = (y[row].float() - before[row].float() - expected[row]).norm()
            size = expected[row].norm() + before[row].float().norm()
            assert off <= TOLERANCE * size, f"row {row} of slot {slot} is off by {off / size:.1e}"
