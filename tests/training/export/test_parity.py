"""Two sets of logits, compared."""

import pytest
import torch

from training.export.parity import parity_of


def test_rounding_may_swap_tokens_that_are_nearly_as_likely() -> None:
    expected = torch.tensor([[0.50, 0.48, 0.02], [0.55, 0.43, 0.02], [0.9, 0.05, 0.05]]).log()
    swapped = expected[:, [1, 0, 2]]
    parity = parity_of(expected, torch.cat([swapped[:2], expected[2:]]))
    assert parity.top1 == pytest.approx(2 / 3), "the second pair is too far apart"
    assert parity.divergence > 0


def test_equal_logits_do_not_differ() -> None:
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    parity = parity_of(logits, logits.clone())
    assert (parity.max_difference, parity.divergence, parity.top1) == (0, 0, 1)
    assert parity.num_positions == 5
    shifted = parity_of(logits, logits + 0.5)
    assert shifted.max_difference == pytest.approx(0.5)
    assert shifted.divergence == pytest.approx(0, abs=1e-6), "the probabilities are the same"
