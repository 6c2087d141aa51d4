"""Rounding of one weight: the range that is searched for, and errors that are made up for."""

from collections.abc import Sequence

import pytest
import torch
from compressed_tensors.compressors import PackedQuantizationCompressor

from training.errors import TrainingError
from training.quantization.gptq import CLIPS, four_bit_scheme, round_weight


def outputs_error(weight: torch.Tensor, rounded: torch.Tensor, inputs: torch.Tensor) -> float:
    return float((inputs @ (rounded - weight).T).norm())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("calibrated", [False, True])
def test_what_is_packed_is_what_was_rounded(dtype: torch.dtype, calibrated: bool) -> None:
    torch.manual_seed(0)
    weight, inputs = torch.randn(32, 192).to(dtype), torch.randn(400, 192)
    scheme = four_bit_scheme(64)
    rounded, packed = round_weight(weight, scheme, inputs.T @ inputs if calibrated else None)
    assert packed["weight_scale"].dtype == dtype
    assert packed["weight_packed"].shape == (32, 192 // 8)
    packed["weight_scale"] = packed["weight_scale"].float()
    assert torch.equal(PackedQuantizationCompressor.decompress(packed, scheme)["weight"], rounded)


def test_clipping_never_errs_more_than_the_whole_range() -> None:
    torch.manual_seed(0)
    weight = torch.randn(32, 256)

    def errors(clips: Sequence[float] = CLIPS) -> torch.Tensor:
        """Of each group."""
        rounded, _ = round_weight(weight, four_bit_scheme(32), clips=clips)
        groups = (rounded - weight).view(32, -1, 32)
        return groups.square().sum(dim=-1).sqrt()

    searched, whole = errors(), errors([1.0])
    assert (searched <= whole).all()
    assert searched.mean() < 0.98 * whole.mean()


def test_compensation_spares_the_layers_outputs() -> None:
    torch.manual_seed(0)
    weight = torch.randn(64, 256)
    inputs = torch.randn(2000, 256) @ torch.randn(256, 256)
    nearest, _ = round_weight(weight, four_bit_scheme(32))
    compensated, _ = round_weight(weight, four_bit_scheme(32), inputs.T @ inputs)
    nearest_error = outputs_error(weight, nearest, inputs)
    assert outputs_error(weight, compensated, inputs) < 0.8 * nearest_error


def test_inputs_that_say_little_do_no_harm() -> None:
    torch.manual_seed(0)
    weight, few = torch.randn(32, 128), torch.randn(3, 128)
    few[:, ::2] = 0
    for moments in (few.T @ few, torch.zeros(128, 128)):
        rounded, _ = round_weight(weight, four_bit_scheme(32), moments)
        assert rounded.isfinite().all()
        assert (rounded - weight).norm() < 0.3 * weight.norm()
    with pytest.raises(TrainingError, match="aren't finite"):
        round_weight(weight, four_bit_scheme(32), torch.full((128, 128), torch.nan))
