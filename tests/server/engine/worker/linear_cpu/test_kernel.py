"""The compiled products against exact ones."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine.worker.compiled import KernelUnavailable
from server.engine.worker.linear_cpu.kernel import LinearKernel, PackedLinear, fits

HALF = torch.bfloat16


@pytest.fixture(scope="module")
def kernel() -> LinearKernel:
    try:
        return LinearKernel()
    except KernelUnavailable:
        pytest.skip("there is no C compiler")


def exact(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return x.double() @ weight.double().T + bias.double()


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(0, 40),
    in_pairs=st.integers(1, 70),
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
    packed = PackedLinear(kernel, weight, bias)
    y = packed.apply(x, with_bias=with_bias)
    expected = exact(x, weight, bias if with_bias else torch.zeros_like(bias))
    terms = exact(x.abs(), weight.abs(), bias.abs())
    assert y.dtype == HALF
    # What is lost in sums of float32, and by rounding the result to bfloat16.
    lost = terms * 2 * in_pairs * torch.finfo(torch.float32).eps + expected.abs() * 2**-8
    assert ((y.double() - expected).abs() <= lost).all()


def test_a_row_is_the_same_whatever_is_beside_it(kernel: LinearKernel) -> None:
    """So what a tenant is answered doesn't depend on who else asks."""
    torch.manual_seed(0)
    packed = PackedLinear(kernel, torch.randn(9 * 16, 130).to(HALF))
    x = torch.randn(50, 130).to(HALF)
    alone = torch.cat([packed.apply(x[i : i + 1]) for i in range(len(x))])
    for rows in (2, 3, 4, 5, 7, 8, 11, 12, 13, 25, 50):
        assert torch.equal(packed.apply(x[:rows]), alone[:rows])


def test_a_product_of_many_numbers(kernel: LinearKernel) -> None:
    """More than one thread copies."""
    torch.manual_seed(0)
    x, weight = torch.randn(30, 2048).to(HALF), torch.randn(64, 2048).to(HALF)
    y = PackedLinear(kernel, weight).apply(x)
    expected = exact(x, weight, torch.zeros(64))
    assert torch.allclose(y.double(), expected, rtol=2**-7, atol=0.1)


def test_working_memory_is_float32_while_vllm_loads_a_model(kernel: LinearKernel) -> None:
    """torch's default type is the model's then: half the bytes would be too few."""
    fresh = copy.copy(kernel)
    torch.set_default_dtype(HALF)
    try:
        fresh._scratch = torch.empty(0)
        PackedLinear(fresh, torch.ones(16, 4000)).apply(torch.ones(10, 4000))
    finally:
        torch.set_default_dtype(torch.float32)
    assert fresh._scratch.dtype == torch.float32
    assert fresh._scratch.numel() == 10 * 4000


def test_other_dimensions_and_strides(kernel: LinearKernel) -> None:
    torch.manual_seed(0)
    packed = PackedLinear(kernel, torch.randn(32, 20).to(HALF))
    x = torch.randn(2, 3, 20).to(HALF)
    flat = packed.apply(x.reshape(6, 20))
    assert torch.equal(packed.apply(x), flat.view(2, 3, 32))
    wide = torch.zeros(6, 50, dtype=HALF)
    wide[:, 10:30] = x.reshape(6, 20)
    assert torch.equal(packed.apply(wide[:, 10:30]), flat)
    assert torch.equal(packed.apply(x.reshape(6, 20).T.contiguous().T), flat)


def test_numbers_that_are_not_finite_stay_in_their_row(kernel: LinearKernel) -> None:
    packed = PackedLinear(kernel, torch.ones(16, 4, dtype=HALF))
    x = torch.ones(3, 4, dtype=HALF)
    x[1, 2] = torch.nan
    y = packed.apply(x)
    assert y[1].isnan().all()
    assert (y[[0, 2]] == 4).all()


def test_what_does_not_fit(kernel: LinearKernel) -> None:
    packed = PackedLinear(kernel, torch.ones(16, 4, dtype=HALF))
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
