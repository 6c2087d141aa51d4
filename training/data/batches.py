"""Puts examples into the order in which they are learned, and turns a batch into tensors."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from training.data.tokenization import IGNORED_LABEL, Sample


def training_order(
    lengths: Sequence[int], num_examples: int, batch_size: int, seed: int
) -> list[int]:
    """Return `num_examples` indices into `lengths`, in as many passes as needed.

    Each pass is shuffled. Then the examples of every 50 batches are sorted by length and cut into
    batches, so that there is little padding, and those batches are shuffled. The order depends only
    on the arguments, so a resumed run continues where it stopped.
    """
    rng = random.Random(seed)
    shuffled: list[int] = []
    while len(shuffled) < num_examples:
        shuffled += rng.sample(range(len(lengths)), len(lengths))
    del shuffled[num_examples:]
    order: list[int] = []
    for start in range(0, num_examples, 50 * batch_size):
        similar = sorted(shuffled[start : start + 50 * batch_size], key=lengths.__getitem__)
        batches = [similar[i : i + batch_size] for i in range(0, len(similar), batch_size)]
        rng.shuffle(batches)
        order += [index for batch in batches for index in batch]
    return order


@dataclass(frozen=True)
class Collator:
    """Pads samples to the longest of a batch. Returns int64 tensors of shape (batch, length)."""

    pad_token_id: int

    def __call__(self, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        length = max(len(sample.input_ids) for sample in samples)

        def pad(rows: Iterable[list[int]], filler: int) -> torch.Tensor:
            return torch.tensor([row + [filler] * (length - len(row)) for row in rows])

        return {
            "input_ids": pad((s.input_ids for s in samples), self.pad_token_id),
            "labels": pad((s.labels for s in samples), IGNORED_LABEL),
            "attention_mask": pad(([1] * len(s.input_ids) for s in samples), 0),
        }
