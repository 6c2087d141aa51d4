"""The ranks of adapters in vLLM's slots, and what happens once its layers are wrapped."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
from vllm.lora.layers.classifier import ClassificationHeadWithLoRA

from server.engine.worker.lora_gpu import slots
from server.engine.worker.lora_gpu.operators import Operators, operators
from server.engine.worker.lora_gpu.steps import TILE_ROWS
from server.engine.worker.lora_gpu.tile_table import Entry, Tiles, TileTable
from tests.server.engine.worker.lora_gpu.kernels.layers import DEVICE, DTYPE, Layer, check


def linear(layer: Layer, kind: type[BaseLinearLayerWithLoRA] = BaseLinearLayerWithLoRA) -> Any:
    """A wrapped layer of vLLM's, without what it wraps."""
    module: Any = object.__new__(kind)
    torch.nn.Module.__init__(module)
    module.lora_a_stacked, module.lora_b_stacked = layer.a, layer.b
    return module


def pair(rank: int) -> Any:
    return SimpleNamespace(lora_a=torch.zeros(rank, 64), lora_b=torch.zeros(64, rank))


def packed(*ranks: int | None) -> Any:
    return SimpleNamespace(
        lora_a=[None if rank is None else torch.zeros(rank, 64) for rank in ranks],
        lora_b=[None if rank is None else torch.zeros(32, rank) for rank in ranks],
    )


class Manager:
    """What is used of vLLM's `LoRAModelManager`, with its way of filling a slot."""

    def __init__(self, modules: dict[str, Any], *, sharded: bool = False) -> None:
        self.modules = modules
        self.lora_slots = 4
        self.device = DEVICE
        self.lora_config = SimpleNamespace(fully_sharded_loras=sharded)
        self.lora_index_to_id: list[int | None] = [None] * 4
        self._registered_adapters: dict[int, dict[str, Any]] = {}

    def _get_lora_layer_weights(self, adapter: dict[str, Any], name: str) -> Any:
        return adapter.get(name)

    def activate(self, lora_id: int) -> bool:
        if lora_id in self.lora_index_to_id:
            return False
        self.lora_index_to_id[self.lora_index_to_id.index(None)] = lora_id
        return True


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    yield
    operators().fallback, operators().table = None, TileTable()
    operators().heights = frozenset(TILE_ROWS)


@pytest.mark.parametrize(
    ("weights", "ranks"),
    [
        (None, [0, 0]),
        (packed(16, 8), [16, 8]),
        (packed(16, None), [16, 0]),
        (packed(None, 4), [0, 4]),
        (pair(8), [16, 16]),  # one pair for both slices: how it is split is vLLM's business
    ],
)
def test_ranks_of_two_slices(weights: Any, ranks: list[int]) -> None:
    assert slots.ranks_of(linear(Layer(64, (32, 32), 16)), weights) == ranks


def test_rank_of_one_slice() -> None:
    module = linear(Layer(64, (64,), 16))
    assert slots.ranks_of(module, pair(12)) == [12]
    assert slots.ranks_of(module, None) == [0]


def test_an_adapter_that_gets_a_slot_brings_its_ranks() -> None:
    qkv, out = Layer(64, (32, 32), 16), Layer(64, (64,), 16)
    manager = Manager({"qkv": linear(qkv), "o": linear(out)})
    slots._then_prepare(lambda _manager: None)(manager)
    activate = slots._then_set_ranks(Manager.activate)
    manager._registered_adapters = {7: {"qkv": packed(8, None)}, 9: {"o": pair(12)}}
    assert activate(manager, 7)
    assert activate(manager, 9)
    assert not activate(manager, 9)
    assert qkv.known.ends.tolist() == [[8, 8], [0, 0], [16, 32], [16, 32]]
    assert out.known.ends.tolist() == [[0], [16], [16], [16]]


def test_layers_that_are_not_ours() -> None:
    ours, head = (
        linear(Layer(64, (64,), 16)),
        linear(Layer(64, (8,), 16), ClassificationHeadWithLoRA),
    )
    modules = {"o": ours, "score": head, "experts": torch.nn.Linear(1, 1)}
    assert slots.wrapped_layers(Manager(modules)) == {"o": ours}
    assert slots.wrapped_layers(Manager(modules, sharded=True)) == {}
    manager = Manager(modules, sharded=True)
    slots._then_prepare(lambda _manager: None)(manager)
    assert slots._then_set_ranks(Manager.activate)(manager, 3)


def test_stacks_that_can_not_be_read_are_left_to_vllm(caplog: pytest.LogCaptureFixture) -> None:
    layer = Layer(64, (64,), 16)
    layer.a = (layer.a[0].transpose(2, 3).contiguous().transpose(2, 3),)
    with caplog.at_level(logging.WARNING):
        slots._then_prepare(lambda _manager: None)(Manager({"o": linear(layer)}))
    assert "can't read this base's layers (stacks that aren't contiguous)" in caplog.text
    assert operators().fallback is not None


def test_a_table_that_can_not_be_read_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (path := tmp_path / "lora-tiles.json").write_text("{")
    known = Operators()
    with caplog.at_level(logging.WARNING):
        slots.choose_table(known, "NVIDIA H100", path)
    assert "lora-tiles.json is not a table of tile sizes" in caplog.text
    layer = Layer(64, (32,), 16)
    layer.write(0, 16)
    check(layer, [0])
    assert layer.a[0].dtype == DTYPE


def test_vllm_is_followed_once() -> None:
    from vllm.lora.model_manager import LoRAModelManager

    slots.follow_slots()
    once = LoRAModelManager.activate_adapter
    slots.follow_slots()
    assert LoRAModelManager.activate_adapter is once
    assert hasattr(once, "__wrapped__")


def test_a_step_has_the_tiles_that_its_layers_ask_for() -> None:
    layer = Layer(64, (64,), 16)
    layer.write(0, 16)
    slots._then_prepare(lambda _manager: None)(Manager({"o": linear(layer)}))
    assert operators().heights == {16, 64}
    layer.in_slots.set(0, [[16]])
    check(layer, [0] * 70)
    operators().table = TileTable(
        [Entry(layer.known.shape, 16, Tiles(32, 16, 16, 1, 4, 2, 16, 16, 4, 1))]
    )
    with pytest.raises(ValueError, match="no tiles of 32 rows"):
        check(layer, [0])
