"""A file packed by compiled code is what packing its tensors one by one gives."""

from __future__ import annotations

import ctypes
import gc
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from server.engine.worker.compiled import KernelUnavailable
from server.engine.worker.lora_cpu.files import AdapterFile, PackPlan, Projection
from server.engine.worker.lora_cpu.kernel import RowsKernel
from server.engine.worker.lora_cpu.packing import PackedAdapter, PackedLayer
from tests.long_form import examples

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(scope="module")
def pack_parts() -> Any:
    try:
        return RowsKernel().pack_parts
    except KernelUnavailable:
        pytest.skip("there is no C compiler")


def make_layer(features: int, widths: tuple[int, ...], max_rank: int = 64) -> PackedLayer:
    a = tuple(torch.zeros(2, 1, max_rank, features, dtype=torch.bfloat16) for _ in widths)
    b = tuple(torch.zeros(2, 1, width, max_rank, dtype=torch.bfloat16) for width in widths)
    return PackedLayer(a, b, widths, for_kernel=True)


def write(directory: Path, tensors: dict[str, torch.Tensor]) -> Path:
    path = directory / "adapter_model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def projections_of(file: AdapterFile, ranks: Any, scale: float) -> list[Projection | None]:
    matrices = file.matrices
    return [
        Projection(matrices[f"{index}.A"], matrices[f"{index}.B"], scale) if rank else None
        for index, rank in enumerate(ranks)
    ]


def pack(
    file: AdapterFile, pack_parts: Any, layer: PackedLayer, ranks: Any, scale: float
) -> PackedAdapter:
    plan = PackPlan({"it": (layer, projections_of(file, ranks, scale))})
    return plan.pack(file, pack_parts)["it"]


def bytes_of(adapter: PackedAdapter, features: int, widths: tuple[int, ...]) -> Any:
    struct: Any = adapter.struct
    ranks = [struct.rank[index] for index in range(len(widths))]
    num_a = struct.ranks * -(-features // 16) * 16
    num_b = sum(r * -(-w // 16) * 16 for r, w in zip(ranks, widths, strict=True))
    assert struct.size == num_a + num_b
    return (
        ranks,
        ctypes.string_at(struct.a, 2 * num_a) if num_a else b"",
        ctypes.string_at(struct.b, 2 * num_b) if num_b else b"",
    )


@settings(deadline=None, max_examples=examples(60))
@given(
    features=st.sampled_from([1, 2, 17, 48, 512, 1101]),
    shape=st.lists(
        st.tuples(st.sampled_from([1, 15, 16, 33]), st.sampled_from([0, 1, 2, 5, 7, 16, 33])),
        min_size=1,
        max_size=3,
    ),
    dtype=st.sampled_from(DTYPES),
    scale=st.sampled_from([1.0, 2.0, 0.3]),
    seed=st.integers(0, 2**31),
)
def test_packing_a_file_is_packing_its_tensors(
    pack_parts: Any,
    tmp_path_factory: pytest.TempPathFactory,
    features: int,
    shape: list[tuple[int, int]],
    dtype: torch.dtype,
    scale: float,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    widths, ranks = tuple(width for width, _ in shape), [rank for _, rank in shape]
    tensors: dict[str, torch.Tensor] = {}
    a, b = [], []
    for index, (width, rank) in enumerate(shape):
        part_a, part_b = torch.randn(rank, features), torch.randn(width, rank)
        # Among them numbers that are subnormal, or zero, in half precision.
        part_a, part_b = (
            (part_a * 10.0 ** torch.randint(-7, 3, part_a.shape)).to(dtype),
            part_b.to(dtype),
        )
        tensors |= {f"{index}.A": part_a, f"{index}.B": part_b}
        a.append(part_a.bfloat16() if rank else None)
        scaled = part_b.bfloat16().clone()
        scaled *= scale  # in bfloat16, as vLLM does
        b.append(scaled)
    layer = make_layer(features, widths)
    file = AdapterFile(write(tmp_path_factory.mktemp("adapter"), tensors))
    packed = pack(file, pack_parts, layer, ranks, scale)
    assert bytes_of(packed, features, widths) == bytes_of(layer.pack(a, b), features, widths)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 3.4e38])
@pytest.mark.parametrize("side", ["0.A", "0.B"])
def test_numbers_that_are_not_finite(
    pack_parts: Any, tmp_path: Path, value: float, side: str
) -> None:
    tensors = {"0.A": torch.ones(2, 16), "0.B": torch.ones(8, 2)}
    tensors[side][1, 1] = value
    file = AdapterFile(write(tmp_path, tensors))
    with pytest.raises(ValueError, match="aren't finite"):
        pack(file, pack_parts, make_layer(16, (8,)), [2], 1.0)


def test_scaling_that_overflows(pack_parts: Any, tmp_path: Path) -> None:
    file = AdapterFile(write(tmp_path, {"0.A": torch.ones(2, 16), "0.B": torch.ones(8, 2)}))
    for scale in (1e39, float("nan")):
        with pytest.raises(ValueError, match="aren't finite"):
            pack(file, pack_parts, make_layer(16, (8,)), [2], scale)


def test_shapes_that_do_not_fit(pack_parts: Any, tmp_path: Path) -> None:
    for a, b in (((2, 15), (8, 2)), ((2, 16), (7, 2)), ((3, 16), (8, 2)), ((65, 16), (8, 65))):
        file = AdapterFile(write(tmp_path, {"0.A": torch.ones(a), "0.B": torch.ones(b)}))
        with pytest.raises(ValueError, match=r"it: A .* in a layer of 16 features in, 8 out"):
            pack(file, pack_parts, make_layer(16, (8,)), [2], 1.0)


def test_files_that_are_none(tmp_path: Path) -> None:
    path = write(tmp_path, {"0.A": torch.ones(2, 16)})
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    beyond = {"0.A": {"dtype": "F32", "shape": [2, 16], "data_offsets": [64, 192]}}
    before = {"0.A": {"dtype": "F32", "shape": [2, 16], "data_offsets": [-128, 0]}}
    for content in (
        b"",
        whole[:7],
        whole[: start - 1],
        whole[:-1],
        *(with_header(header, whole[start:]) for header in (beyond, before)),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="shorter than its header says"):
            _ = AdapterFile(path).matrices
    for tensor in (torch.ones(2, 2, dtype=torch.int8), torch.ones(2), torch.ones(2, 2).double()):
        with pytest.raises(ValueError, match="no matrix of floating-point numbers"):
            _ = AdapterFile(write(tmp_path, {"0.A": tensor})).matrices


def with_header(header: dict[str, Any], data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def test_memory_goes_with_the_last_layer(pack_parts: Any, tmp_path: Path) -> None:
    file = AdapterFile(write(tmp_path, {"0.A": torch.ones(2, 16), "0.B": torch.ones(8, 2)}))
    layers = {name: (make_layer(16, (8,)), projections_of(file, [2], 1.0)) for name in "xy"}
    packed = PackPlan(layers).pack(file, pack_parts)
    block = weakref.ref(packed["x"]._owner)
    del packed["x"]
    gc.collect()
    assert block() is not None
    del packed
    gc.collect()
    assert block() is None
