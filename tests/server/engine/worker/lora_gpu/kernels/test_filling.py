"""Slots filled from images: the same numbers as vLLM's way, in order, visible at the end only."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA

from server.engine.worker.lora_cpu.files import AdapterFile, Projection
from server.engine.worker.lora_gpu import slots
from server.engine.worker.lora_gpu.filling import ImageAdapter, SlotFilling
from server.engine.worker.lora_gpu.image import make_image
from server.engine.worker.lora_gpu.operators import operators
from server.engine.worker.lora_gpu.slots import FollowedLayers
from server.engine.worker.lora_gpu.transfer import CudaLane, HostLane, Lane, SlotTransfer
from tests.server.engine.worker.lora_gpu.kernels.layers import DEVICE, DTYPE, Layer, check

QKV = (64, 32, 32)


def lane() -> Lane:
    return CudaLane(torch.device("cuda", 0)) if DEVICE == "cuda" else HostLane()


class FakeEvent:
    """Done as soon as somebody waits for it."""

    def __init__(self, lane: FakeLane) -> None:
        self.lane = lane
        self.recorded = False

    def record(self) -> None:
        assert self.lane.inside, "events belong to the lane's stream"
        self.recorded = True
        self.lane.log.append("record")

    def synchronize(self) -> None:
        self.lane.log.append("wait" if self.recorded else "nothing to wait for")


class FakeLane(HostLane):
    """A stream that notes what happens on it."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.inside = False

    def mark(self) -> None:
        self.log.append("mark")

    @contextlib.contextmanager
    def after(self, mark: None) -> Iterator[None]:
        self.log.append("after")
        self.inside = True
        yield
        self.inside = False

    def event(self) -> Any:
        return FakeEvent(self)


def save(path: Path, dtype: torch.dtype = torch.float32, **shapes: tuple[int, int]) -> AdapterFile:
    """A file with A and B of projections of 64 features; (rank, outputs) of each."""
    tensors = {}
    for name, (rank, out) in shapes.items():
        tensors[f"{name}.a"] = (torch.randn(rank, 64) / 8).to(dtype)
        tensors[f"{name}.b"] = (torch.randn(out, rank) / rank**0.5).to(dtype)
    save_file(tensors, path / "x.safetensors")
    return AdapterFile(path / "x.safetensors")


def projection(file: AdapterFile, name: str, scale: float = 0.5) -> Projection:
    return Projection(file.matrices[f"{name}.a"], file.matrices[f"{name}.b"], scale)


def tensor(path: Path, name: str) -> torch.Tensor:
    from safetensors.torch import load_file

    return load_file(path / "x.safetensors")[name]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("chunk_bytes", [64, 5000, 1 << 20])
def test_a_slot_is_filled(tmp_path: Path, dtype: torch.dtype, chunk_bytes: int) -> None:
    qkv, out = Layer(64, QKV, max_rank=16), Layer(64, (64,), max_rank=16)
    for layer in (qkv, out):
        for stack in (*layer.a, *layer.b):
            stack[1] = torch.nan  # what the slot's last adapter left
            stack[2] = 7.0
    file = save(tmp_path, dtype, q=(12, 64), v=(16, 32), o=(8, 64))
    image = make_image(
        file,
        [qkv.known, out.known],
        {0: [projection(file, "q"), None, projection(file, "v")], 1: [projection(file, "o")]},
        chunk_bytes,
    )
    assert image is not None
    SlotTransfer(qkv.a[0], lane(), chunk_bytes).begin(image, 1).result(60)
    for layer, i, name, rank in ((qkv, 0, "q", 12), (qkv, 2, "v", 16), (out, 0, "o", 8)):
        a, b = layer.a[i][1, 0], layer.b[i][1, 0]
        padded = -(-rank // 8) * 8
        assert torch.equal(a[:rank].cpu(), tensor(tmp_path, f"{name}.a").to(DTYPE))
        scaled = tensor(tmp_path, f"{name}.b").to(DTYPE).float() * 0.5
        assert torch.equal(b[:, :rank].cpu(), scaled.to(DTYPE))
        assert not a[rank:padded].any()
        assert not b[:, rank:padded].any()
        layer.ranks[1] = tuple(image.ranks[0 if layer is qkv else 1])
        layer.in_slots.set(1, [layer.ranks[1]])
    for layer in (qkv, out):
        assert all(bool((stack[2] == 7).all()) for stack in (*layer.a, *layer.b)), "the next slot"
        check(layer, [1, -1, 1])


@pytest.mark.skipif(DEVICE != "cpu", reason="the fake stream is the CPU's")
def test_a_chunk_waits_until_its_buffer_has_been_copied(tmp_path: Path) -> None:
    layer, lane = Layer(64, (64, 64), max_rank=16), FakeLane()
    file = save(tmp_path, q=(8, 64), k=(8, 64))
    pairs = [projection(file, "q"), projection(file, "k")]
    image = make_image(file, [layer.known], {0: pairs}, chunk_bytes=64)
    assert image is not None
    assert len(image.chunks) == 4
    transfer = SlotTransfer(layer.a[0], lane, 1 << 16)
    assert lane.log == []
    transfer.begin(image, 0).result(60)
    assert lane.log == [
        "mark", "after",
        "nothing to wait for", "record", "nothing to wait for", "record",
        "wait", "record", "wait", "record",
        "record", "wait",
    ]  # fmt: skip


def manager_of(**layers: Layer) -> Any:
    modules = {}
    for name, layer in layers.items():
        module = BaseLinearLayerWithLoRA.__new__(BaseLinearLayerWithLoRA)
        torch.nn.Module.__init__(module)
        module.lora_a_stacked, module.lora_b_stacked = layer.a, layer.b
        module.n_slices, module.tp_size = len(layer.outputs), 1
        modules[name] = module
    return SimpleNamespace(
        modules=modules,
        packed_modules={"qkv": ["q", "k", "v"]},
        lora_slots=4,
        lora_config=SimpleNamespace(fully_sharded_loras=False),
        lora_index_to_id=[None] * 4,
        _registered_adapters={},
        _active_adapters={},
    )


def filling_of(manager: Any) -> tuple[SlotFilling, FollowedLayers]:
    followed = FollowedLayers(manager, operators())
    return SlotFilling(manager, followed, lane()), followed


def test_an_adapter_gets_a_slot_and_then_its_ranks(tmp_path: Path) -> None:
    qkv, out = Layer(64, QKV, max_rank=16), Layer(64, (64,), max_rank=16)
    manager = manager_of(qkv=qkv, o=out)
    filling, _ = filling_of(manager)
    assert filling.places == {
        "q": ("qkv", 0, 3),
        "k": ("qkv", 1, 3),
        "v": ("qkv", 2, 3),
        "o": ("o", 0, 1),
    }
    file = save(tmp_path, q=(8, 64))
    plan = filling.plan(file, {"qkv": [projection(file, "q"), None, None]})
    assert plan is not None
    adapter = plan(7, 8, file)
    assert isinstance(adapter, ImageAdapter)
    assert adapter.id == 7
    manager._registered_adapters[7] = adapter
    future = filling.begin(7)
    assert future is not None
    future.result(60)
    assert manager.lora_index_to_id == [7, None, None, None]
    assert qkv.known.ends[0].tolist() == [16, 32, 48], "not before it is finished"
    filling.finish(7)
    assert qkv.known.ends[0].tolist() == [8, 8, 8]
    assert out.known.ends[0].tolist() == [0]


def test_vllm_itself_may_ask_for_the_adapter(tmp_path: Path) -> None:
    manager = manager_of(o=(layer := Layer(64, (64,), max_rank=16)))
    filling, _ = filling_of(manager)
    file = save(tmp_path, o=(16, 64))
    plan = filling.plan(file, {"o": [projection(file, "o")]})
    assert plan is not None
    manager._registered_adapters[3] = plan(3, 16, file)
    manager.loraplex_fill_now = filling.fill_now
    activate = slots._then_set_ranks(lambda _manager, _id: pytest.fail("vLLM's way"))
    assert activate(manager, 3)
    assert not activate(manager, 3)
    layer.ranks[0] = (16,)
    check(layer, [0, 0])


def test_other_adapters_go_vllms_way() -> None:
    manager = manager_of(o=Layer(64, (64,), max_rank=16))
    filling, _ = filling_of(manager)
    activated: list[int] = []
    manager.activate_adapter = activated.append
    manager._registered_adapters[3] = SimpleNamespace(loras={})
    assert filling.begin(3) is None
    assert activated == [3]
    filling.finish(3)


def test_the_check_before_it_is_used() -> None:
    layer = Layer(64, QKV, max_rank=16)
    filling, _ = filling_of(manager_of(qkv=layer, o=Layer(64, (64,), max_rank=16)))
    assert filling.works()
    assert not any(stack[0].any() for stack in (*layer.a, *layer.b)), "the slot is as it was"


def test_a_fault_is_found_by_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Layer(64, (64,), max_rank=16)
    filling, _ = filling_of(manager_of(o=layer))
    begin = filling._transfer.begin

    class Wrong(SlotTransfer):
        def _send(self, *arguments: Any) -> None:
            super()._send(*arguments)
            layer.b[0][0, 0, 3, 2] += 1

    filling._transfer = Wrong(layer.a[0], lane())
    assert not filling.works()
    assert begin is not None
