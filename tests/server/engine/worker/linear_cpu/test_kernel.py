"""The compiled products against exact ones."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine.worker.compiled import KernelUnavailable
from server.engine.worker.linear_cpu.kernel import (
    LinearKernel,
    PackedLinear,
    fits,
    fits_four_bit,
    pack,
    pack_four_bit,
)
from tests.four_bit import random_four_bit

HALF = torch.bfloat16


@pytest.fixture(scope="module")
def kernel() -> LinearKernel:
    try:
        return LinearKernel()
    except KernelUnavailable:
        pytest.skip("there is no C compiler")


def exact(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return x.double() @ weight.double().T + bias.double()


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 70),
    # With AMX, numbers of features that 32 divides take instructions of their own.
    in_pairs=st.integers(1, 70) | st.sampled_from([16, 32, 48]),
    out_lanes=st.integers(1, 9),
    with_bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_products(
    kernel: LinearKernel, rows: int, in_pairs: int, out_lanes: int, with_bias: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    x = torch.randn(rows, 2 * in_pairs).to(HALF)
    weight = torch.randn(16 * out_lanes, 2 * in_pairs).to(HALF)
    bias = torch.randn(16 * out_lanes).to(HALF)
    packed = PackedLinear(kernel, pack(weight), bias)
    y = packed.apply(x, with_bias=with_bias)
    expected = exact(x, weight, bias if with_bias else torch.zeros_like(bias))
    terms = exact(x.abs(), weight.abs(), bias.abs())
    assert y.dtype == HALF
    # What is lost in sums of float32, and by rounding the result to bfloat16.
    lost = terms * 2 * in_pairs * torch.finfo(torch.float32).eps + expected.abs() * 2**-8
    assert ((y.double() - expected).abs() <= lost).all()


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(0, 40),
    group=st.sampled_from([8, 32, 64, 128]),
    groups=st.integers(1, 5),
    out_lanes=st.integers(1, 9),
    with_bias=st.booleans(),
    with_zeros=st.booleans(),
    seed=st.integers(0, 99),
)
def test_products_with_4_bits(
    kernel: LinearKernel,
    rows: int,
    group: int,
    groups: int,
    out_lanes: int,
    with_bias: bool,
    with_zeros: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    in_features = group * groups
    made = random_four_bit(16 * out_lanes, in_features, group, with_zeros=with_zeros)
    parts = (made.words, made.scales, made.zeros)
    assert fits_four_bit(*parts)
    x = torch.randn(rows, in_features).to(HALF)
    bias = torch.randn(16 * out_lanes).to(HALF)
    packed = PackedLinear(kernel, pack_four_bit(*parts), bias)
    y = packed.apply(x, with_bias=with_bias)
    expected = exact(x, made.weight, bias if with_bias else torch.zeros_like(bias))
    # Zeros are subtracted from sums. The largest weight before that is 8 times its scale.
    largest = made.weight.abs() + 8 * made.scales.double().repeat_interleave(group, 1)
    terms = exact(x.abs(), largest, bias.abs())
    lost = terms * 2 * in_features * torch.finfo(torch.float32).eps + expected.abs() * 2**-8
    assert ((y.double() - expected).abs() <= lost).all()


def test_which_weights_of_4_bits_fit() -> None:
    words, scales = torch.zeros(32, 8, dtype=torch.int32), torch.ones(32, 2, dtype=HALF)
    zeros = torch.zeros(32, 2, dtype=torch.int8)
    assert fits_four_bit(words, scales, None)
    assert fits_four_bit(words, scales, zeros)
    for others in (
        (words[:24], scales[:24], None),
        (words.long(), scales, None),
        (words, scales.float(), None),
        (words, scales[:16], None),
        (words, torch.ones(32, 3, dtype=HALF), None),  # groups of different sizes
        (words, torch.ones(32, 16, dtype=HALF), None),  # a group is half a word
        (words[:0], scales[:0], None),
        (words.view(32, 2, 4), scales, None),
        (words, scales, zeros[:, :1]),
        (words, scales, zeros.int()),
    ):
        assert not fits_four_bit(*others)


@pytest.mark.parametrize("bits", [16, 4])
def test_a_row_is_the_same_whatever_is_beside_it(kernel: LinearKernel, bits: int) -> None:
    """So what a tenant is answered doesn't depend on who else asks."""
    torch.manual_seed(0)
    made = random_four_bit(9 * 16, 192, 32, with_zeros=True)
    four = pack_four_bit(made.words, made.scales, made.zeros)
    packed = PackedLinear(kernel, four if bits == 4 else pack(made.weight.to(HALF)))
    x = torch.randn(50, 192).to(HALF)
    alone = torch.cat([packed.apply(x[i : i + 1]) for i in range(len(x))])
    for rows in (2, 3, 4, 5, 7, 8, 11, 12, 13, 25, 50):
        assert torch.equal(packed.apply(x[:rows]), alone[:rows])


def test_a_product_of_many_numbers(kernel: LinearKernel) -> None:
    """More than one thread copies."""
    torch.manual_seed(0)
    x, weight = torch.randn(30, 2048).to(HALF), torch.randn(64, 2048).to(HALF)
    y = PackedLinear(kernel, pack(weight)).apply(x)
    expected = exact(x, weight, torch.zeros(64))
    assert torch.allclose(y.double(), expected, rtol=2**-7, atol=0.1)


def test_working_memory_is_float32_while_vllm_loads_a_model(kernel: LinearKernel) -> None:
    """torch's default type is the model's then: half the bytes would be too few."""
    fresh = copy.copy(kernel)
    torch.set_default_dtype(HALF)
    try:
        fresh._scratch = torch.empty(0)
        PackedLinear(fresh, pack(torch.ones(16, 4000))).apply(torch.ones(10, 4000))
    finally:
        torch.set_default_dtype(torch.float32)
    assert fresh._scratch.dtype == torch.float32
    assert fresh._scratch.numel() == 10 * 4000


def test_other_dimensions_and_strides(kernel: LinearKernel) -> None:
    torch.manual_seed(0)
    packed = PackedLinear(kernel, pack(torch.randn(32, 20).to(HALF)))
    x = torch.randn(2, 3, 20).to(HALF)
    flat = packed.apply(x.reshape(6, 20))
    assert torch.equal(packed.apply(x), flat.view(2, 3, 32))
    wide = torch.zeros(6, 50, dtype=HALF)
    wide[:, 10:30] = x.reshape(6, 20)
    assert torch.equal(packed.apply(wide[:, 10:30]), flat)
    assert torch.equal(packed.apply(x.reshape(6, 20).T.contiguous().T), flat)


def test_numbers_that_are_not_finite_stay_in_their_row(kernel: LinearKernel) -> None:
    packed = PackedLinear(kernel, pack(torch.ones(16, 4, dtype=HALF)))
    x = torch.ones(3, 4, dtype=HALF)
    x[1, 2] = torch.nan
    y = packed.apply(x)
    assert y[1].isnan().all()
    assert (y[[0, 2]] == 4).all()


def test_what_does_not_fit(kernel: LinearKernel) -> None:
    packed = PackedLinear(kernel, pack(torch.ones(16, 4, dtype=HALF)))
    with pytest.raises(ValueError, match="layer of"):
        packed.apply(torch.ones(3, 6, dtype=HALF))
    with pytest.raises(ValueError, match="float32"):
        packed.apply(torch.ones(3, 4))
    assert fits(torch.ones(32, 6, dtype=HALF))
    for other in (
        torch.ones(24, 6, dtype=HALF),
        torch.ones(32, 5, dtype=HALF),
        torch.ones(32, 6),
        torch.ones(32, 6, 2, dtype=HALF),
        torch.ones(0, 6, dtype=HALF),
    ):
        assert not fits(other)
