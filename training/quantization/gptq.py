"""Rounds one weight matrix to four bits by GPTQ (Frantar et al., 2022, arXiv:2210.17323).

Neighbours in a row form a group with one scale and one zero point, which give it sixteen values. If
the second moments of the layer's inputs are known, the error of each rounded column is compensated
in the columns that follow.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from compressed_tensors.compressors import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams

from training.errors import TrainingError

NUM_BITS = 4
LOWEST, HIGHEST = -(1 << NUM_BITS - 1), (1 << NUM_BITS - 1) - 1

CLIPS = tuple(1.0 - 0.05 * step for step in range(10))
"""Shares of a group's range to try: if outliers are cut off, the other values get finer steps."""
ROWS_AT_ONCE = 2048
"""Number of rows in the search at a time, which bounds its memory for layers of any size."""
BLOCK = 128
"""Number of columns whose errors are passed on together."""
DAMPINGS = (0.01, 0.1, 1.0)
"""Shares of the mean second moment to add to the diagonal, in turn, until it can be inverted."""


def four_bit_scheme(group_size: int) -> QuantizationScheme:
    """Return the scheme. Each group has a zero point, which small models need."""
    weights = QuantizationArgs(
        num_bits=NUM_BITS, type="int", symmetric=False, strategy="group", group_size=group_size
    )
    return QuantizationScheme(targets=["Linear"], weights=weights)


def round_weight(
    weight: torch.Tensor,
    scheme: QuantizationScheme,
    moments: torch.Tensor | None = None,
    clips: Sequence[float] = CLIPS,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the rounded weight, and its tensors for the file: packed, scales, zero points, shape.

    `weight` has the shape (out, in). `moments` has the shape (in, in): the sum of the outer
    products of the layer's inputs. If it is None, each weight takes the nearest value. `clips` are
    the shares of a group's range to try.

    Raises:
        TrainingError: the moments aren't finite.
    """
    args = scheme.weights
    pieces = [_fit(rows, args, clips) for rows in torch.split(weight, ROWS_AT_ONCE)]
    scale, zero_point = (torch.cat(part) for part in zip(*pieces, strict=True))
    values = weight.float()
    if moments is None:
        rounded = _nearest(values.view(*scale.shape, -1), scale[..., None], zero_point[..., None])
        rounded = rounded.view(weight.shape)
    else:
        rounded = _compensated(values, moments, scale, zero_point)
    state = {"weight": rounded, "weight_scale": scale, "weight_zero_point": zero_point}
    packed: dict[str, torch.Tensor] = PackedQuantizationCompressor.compress(state, scheme)
    return rounded, packed | {"weight_scale": scale.to(weight.dtype)}


def _nearest(values: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor) -> torch.Tensor:
    steps = torch.clamp(torch.round(values / scale) + zero_point, LOWEST, HIGHEST)
    return (steps - zero_point) * scale


def _fit(
    weight: torch.Tensor, args: QuantizationArgs, clips: Sequence[float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the scales and zero points with the least error.

    Scales are float32, but exact in the weight's type.
    """
    groups = weight.float().view(len(weight), -1, args.group_size)
    low, high = groups.aminmax(dim=-1)
    best_error = torch.full_like(low, torch.inf)
    best_scale, best_zero = torch.ones_like(low), torch.zeros_like(low, dtype=torch.int8)
    for clip in clips:
        scale, zero = calculate_qparams(low * clip, high * clip, args)
        scale = scale.to(weight.dtype).float()
        error = (_nearest(groups, scale[..., None], zero[..., None]) - groups).square().sum(-1)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scale = torch.where(better, scale, best_scale)
        best_zero = torch.where(better, zero, best_zero)
    return best_scale, best_zero


def _compensated(
    values: torch.Tensor, moments: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor
) -> torch.Tensor:
    """Round column by column, and compensate each column's error in the columns to its right."""
    scale, zero_point = scale.T.contiguous(), zero_point.T.contiguous()
    columns = values.T.contiguous()  # the layout in which a column's values are neighbours
    rounded = torch.empty_like(columns)
    group_size = len(columns) // len(scale)
    weights = _inverse_factor(moments)
    for start in range(0, len(columns), BLOCK):
        stop = min(start + BLOCK, len(columns))
        errors = torch.empty_like(columns[start:stop])
        for index in range(start, stop):
            group = index // group_size
            rounded[index] = _nearest(columns[index], scale[group], zero_point[group])
            error = (columns[index] - rounded[index]) / weights[index, index]
            columns[index:stop] -= torch.outer(weights[index, index:stop], error)
            errors[index - start] = error
        columns[stop:] -= weights[start:stop, stop:].T @ errors
    return rounded.T.contiguous()


def _inverse_factor(moments: torch.Tensor) -> torch.Tensor:
    """Return the upper Cholesky factor of the inverse of the damped moments.

    Raises:
        TrainingError: the moments aren't finite.
    """
    diagonal = moments.diagonal()
    # If an input was always zero, nothing is known about its column, so it is only rounded.
    filled = moments + torch.diag((diagonal == 0).to(moments.dtype))
    for damping in DAMPINGS:
        damped = filled + torch.eye(len(moments)) * (damping * diagonal.mean())
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            inverse = torch.cholesky_inverse(factor)
            upper: torch.Tensor = torch.linalg.cholesky(inverse, upper=True)
            return upper
    raise TrainingError("the base's layers give values that aren't finite on the samples")
