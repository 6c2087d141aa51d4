"""The compiled decoder against the same layers in float64."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch

from server.engine.worker.compiled import KernelUnavailable
from server.engine.worker.decoder_cpu.kernel import (
    Batch,
    Decoder,
    DecoderStruct,
    LayerStruct,
    ProjectionStruct,
)
from server.engine.worker.linear_cpu.kernel import LinearKernel, PackedLinear, pack, pack_four_bit
from server.engine.worker.lora_cpu.packing import PackedLayer
from server.engine.worker.lora_cpu.steps import make_step
from tests.four_bit import random_four_bit

HALF = torch.bfloat16
SLOTS, RANK = 3, 4
NUM_BLOCKS, EPSILON = 12, 1e-5


@dataclass(frozen=True)
class Shape:
    """A decoder's sizes."""

    hidden: int
    heads: int
    kv_heads: int
    features: int
    inner: int
    layers: int
    block: int
    bias: bool = False
    group: int = 0
    """Of weights in 4 bits: how many features in share a scale. 0 stands for bfloat16."""
    has_pairs: bool = False
    """Whether the cache has the form that vLLM uses with AMX."""


SHAPES = [
    Shape(64, 4, 2, 32, 96, 2, 32),
    Shape(576, 9, 3, 64, 320, 1, 64),
    Shape(128, 2, 2, 128, 160, 1, 128, bias=True),
    Shape(96, 3, 1, 96, 64, 3, 32),
    Shape(64, 4, 2, 32, 96, 2, 32, bias=True, group=32),
    Shape(64, 4, 2, 32, 96, 2, 64, has_pairs=True),
    Shape(576, 9, 3, 64, 320, 1, 32, has_pairs=True),
    Shape(96, 3, 1, 96, 64, 2, 128, has_pairs=True),
]


class Projection:
    """A linear layer, its adapters, and both packed."""

    def __init__(
        self,
        kernel: LinearKernel,
        features: int,
        widths: tuple[int, ...],
        bias: bool,
        group: int,
    ) -> None:
        out = sum(widths)
        self.bias = torch.randn(out).to(HALF) / 4 if bias else None
        if group:
            made = random_four_bit(out, features, group)
            scales = made.scales / 32  # a power of 2 is exact
            self.weight, weight = made.weight / 32, pack_four_bit(made.words, scales, None)
        else:
            self.weight = (torch.randn(out, features) / features**0.5).to(HALF)
            weight = pack(self.weight)
        self.packed = PackedLinear(kernel, weight, self.bias)
        stacked_a = tuple(torch.empty(SLOTS, 1, RANK, features, dtype=HALF) for _ in widths)
        stacked_b = tuple(torch.empty(SLOTS, 1, width, RANK, dtype=HALF) for width in widths)
        self.adapters = PackedLayer(stacked_a, stacked_b, widths, for_kernel=True)
        self.deltas = {}
        for slot in range(SLOTS - 1):  # the last slot stays empty
            a = [(torch.randn(RANK, features) / features**0.5).to(HALF) for _ in widths]
            b = [(torch.randn(width, RANK) / 2).to(HALF) for width in widths]
            self.adapters.place(slot, self.adapters.pack(a, b))
            self.deltas[slot] = torch.cat(
                [y.double() @ x.double() for x, y in zip(a, b, strict=True)]
            )

    @property
    def struct(self) -> ProjectionStruct:
        struct = self.packed.struct(with_bias=self.bias is not None)
        return ProjectionStruct(struct, self.adapters.address)

    def exact(self, x: torch.Tensor, slot: int) -> torch.Tensor:
        weight = self.weight.double() + (self.deltas[slot] if slot >= 0 else 0)
        y: torch.Tensor = weight @ x
        return y if self.bias is None else y + self.bias.double()


class Layer:
    """One layer, in both forms."""

    def __init__(self, kernel: LinearKernel, shape: Shape) -> None:
        own, shared = shape.heads * shape.features, shape.kv_heads * shape.features
        hidden, inner, group = shape.hidden, shape.inner, shape.group
        self.qkv = Projection(kernel, hidden, (own, shared, shared), shape.bias, group)
        self.attended = Projection(kernel, own, (hidden,), False, group)
        self.gate_up = Projection(kernel, hidden, (inner, inner), False, group)
        self.down = Projection(kernel, inner, (hidden,), shape.bias, group)
        self.norms = (torch.rand(2, shape.hidden) + 0.5).to(HALF)
        # What no request has written must not matter.
        self.cache = torch.full(
            (NUM_BLOCKS, shape.kv_heads, 2, shape.features * shape.block), torch.nan, dtype=HALF
        )

    @property
    def struct(self) -> LayerStruct:
        parts = (self.qkv, self.attended, self.gate_up, self.down)
        norms = (norm.data_ptr() for norm in self.norms)
        return LayerStruct(*(part.struct for part in parts), *norms, self.cache.data_ptr())


class Model:
    """A decoder with random weights."""

    def __init__(self, shape: Shape) -> None:
        kernel = LinearKernel()
        self.shape = shape
        self.layers = [Layer(kernel, shape) for _ in range(shape.layers)]
        self.norm = (torch.rand(shape.hidden) + 0.5).to(HALF)
        angles = torch.arange(500)[:, None] / 100 ** (torch.arange(shape.features // 2) / 16)
        self.cos_sin = torch.cat([angles.cos(), angles.sin()], dim=1).to(HALF)
        structs = (LayerStruct * shape.layers)(*(layer.struct for layer in self.layers))
        struct = DecoderStruct(
            num_layers=shape.layers,
            hidden=shape.hidden,
            heads=shape.heads,
            kv_heads=shape.kv_heads,
            head_features=shape.features,
            inner=shape.inner,
            block_tokens=shape.block,
            block_stride=self.layers[0].cache.stride(0),
            has_pairs=shape.has_pairs,
            rotary=shape.features,
            epsilon=EPSILON,
            scale=shape.features**-0.5,
            cos_sin=self.cos_sin.data_ptr(),
            norm=self.norm.data_ptr(),
            layers=structs,
        )
        max_ranks = max(
            part.adapters.max_ranks
            for layer in self.layers
            for part in (layer.qkv, layer.attended, layer.gate_up, layer.down)
        )
        self.decoder = Decoder(struct, max_ranks, (self, structs))

    def exact(self, tokens: torch.Tensor, slot: int) -> torch.Tensor:
        """The output for the last of a request's tokens (tokens, hidden)."""
        shape, x = self.shape, tokens.double()
        for layer in self.layers:
            normed = norm(x, layer.norms[0])
            qkv = torch.stack([layer.qkv.exact(row, slot) for row in normed])
            own, shared = shape.heads * shape.features, shape.kv_heads * shape.features
            q, k, v = torch.split(qkv, [own, shared, shared], dim=1)
            q, k = self.rotated(q), self.rotated(k)
            k, v = (t.view(len(x), shape.kv_heads, shape.features) for t in (k, v))
            rows = []
            for position in range(len(x)):
                heads = q[position].view(shape.heads, shape.features)
                shared_by = shape.heads // shape.kv_heads
                parts = []
                for head, query in enumerate(heads):
                    keys = k[: position + 1, head // shared_by]
                    weights = (keys @ query / math.sqrt(shape.features)).softmax(0)
                    parts.append(weights @ v[: position + 1, head // shared_by])
                rows.append(layer.attended.exact(torch.cat(parts), slot))
            x = x + torch.stack(rows)
            normed = norm(x, layer.norms[1])
            wide = torch.stack([layer.gate_up.exact(row, slot) for row in normed])
            gate, up = wide.chunk(2, dim=1)
            inner = torch.nn.functional.silu(gate) * up
            x = x + torch.stack([layer.down.exact(row, slot) for row in inner])
        return norm(x, self.norm)[-1]

    def rotated(self, x: torch.Tensor) -> torch.Tensor:
        parts = x.view(len(x), -1, 2, self.shape.features // 2)
        cos, sin = self.cos_sin[: len(x), None].double().chunk(2, dim=2)
        first, second = parts[:, :, 0], parts[:, :, 1]
        both = [first * cos - second * sin, second * cos + first * sin]
        return torch.stack(both, dim=2).reshape(len(x), -1)

    def run(self, requests: list[torch.Tensor], slots: list[int], at_once: int = 1) -> torch.Tensor:
        """The output for the last token of each request. A step takes so many tokens of each."""
        outputs = torch.empty(len(requests), self.shape.hidden, dtype=HALF)
        per_request = NUM_BLOCKS // len(requests)
        tables = torch.arange(len(requests) * per_request, dtype=torch.int32)
        tables = tables.flip(0).view(len(requests), per_request)
        for begin in range(0, max(map(len, requests)), at_once):
            rows = [
                (request, position)
                for request, tokens in enumerate(requests)
                for position in range(begin, min(begin + at_once, len(tokens)))
            ]
            alive, positions = map(torch.tensor, zip(*rows, strict=True))
            block, token = positions // self.shape.block, positions % self.shape.block
            batch = Batch(
                positions,
                tables[alive, block].long() * self.shape.block + token,
                (positions + 1).to(torch.int32),
                tables[alive].contiguous(),
                make_step([slots[r] for r in alive], SLOTS).blocks,
            )
            embeddings = torch.stack([requests[request][position] for request, position in rows])
            found = self.decoder.decode(embeddings, batch)
            for row, request in zip(found, alive, strict=True):
                outputs[request] = row
        return outputs


def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x / (x.square().mean(1, keepdim=True) + EPSILON).sqrt() * weight.double()


@pytest.fixture(autouse=True)
def _compiler() -> Iterator[None]:
    """One thread computes: threads that wait for each other take long on a busy machine."""
    try:
        LinearKernel()
    except KernelUnavailable:
        pytest.skip("there is no C compiler")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_requests_of_several_lengths_and_adapters(shape: Shape) -> None:
    torch.manual_seed(0)
    model = Model(shape)
    lengths, slots = [1, shape.block + 3, 7, shape.block], [-1, 0, 1, 0]
    requests = [torch.randn(length, shape.hidden).to(HALF) for length in lengths]
    found = model.run(requests, slots).double()
    for row, tokens, slot in zip(found, requests, slots, strict=True):
        expected = model.exact(tokens, slot)
        # Each operation rounds to 8 bits; what a stream answers for is the direction.
        assert torch.nn.functional.cosine_similarity(row, expected, dim=0) > 0.9995
        assert ((row - expected).norm() / expected.norm()) < 0.03


def test_a_prompt_is_computed_as_its_tokens_one_by_one() -> None:
    torch.manual_seed(4)
    model = Model(SHAPES[0])
    requests = [torch.randn(length, 64).to(HALF) for length in (1, 45, 20)]
    expected = model.run(requests, [-1, -1, -1])
    for at_once in (2, 7, 64):
        assert torch.equal(model.run(requests, [-1, -1, -1], at_once), expected)
    mixed = model.run(requests, [1, 0, -1])
    for at_once in (2, 7, 64):
        assert torch.equal(model.run(requests, [1, 0, -1], at_once), mixed)


@pytest.mark.parametrize("threads", [3, 24])
def test_threads_share_the_work(threads: int) -> None:
    """Also more threads than cores, of which most sleep."""
    torch.manual_seed(3)
    model = Model(SHAPES[0])
    requests = [torch.randn(length, 64).to(HALF) for length in (2, 4)]
    alone = model.run(requests, [0, -1])
    torch.set_num_threads(threads)
    for _ in range(5):
        assert torch.equal(model.run(requests, [0, -1]), alone)


def test_a_request_is_answered_as_it_is_alone() -> None:
    torch.manual_seed(1)
    model = Model(SHAPES[0])
    requests = [torch.randn(length, 64).to(HALF) for length in (40, 12, 35)]
    together = model.run(requests, [0, -1, 1])
    for row, tokens, slot in zip(together, requests, [0, -1, 1], strict=True):
        alone = model.run([tokens], [slot])[0]
        assert torch.equal(row, alone)


def test_large_numbers_overflow_in_their_row_alone() -> None:
    torch.manual_seed(2)
    model = Model(SHAPES[0])
    requests = [torch.randn(3, 64).to(HALF) for _ in range(2)]
    quiet = model.run(requests, [-1, -1])
    requests[0][1] = torch.nan
    loud = model.run(requests, [-1, -1])
    assert loud[0].isnan().all()
    assert torch.equal(loud[1], quiet[1])


def test_an_empty_slot_is_refused() -> None:
    model = Model(SHAPES[0])
    with pytest.raises(ValueError, match=f"slot {SLOTS - 1} is empty"):
        model.run([torch.zeros(1, 64, dtype=HALF)], [SLOTS - 1])


def test_structs_have_the_sizes_of_c() -> None:
    """Eight bytes a field, but for two floats that share eight, and structs in structs."""
    assert ctypes.sizeof(DecoderStruct) == 8 * 14
    assert ctypes.sizeof(LayerStruct) == 4 * 8 * 8 + 8 * 3
