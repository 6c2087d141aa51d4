"""The order of examples, and batches of them."""

import random

from training.data.batches import Collator, training_order
from training.data.tokenization import Sample


def test_collator_pads_and_masks() -> None:
    batch = Collator(pad_token_id=9)([Sample([1, 2, 3], [-100, 2, 3]), Sample([4], [4])])
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9]]
    assert batch["labels"].tolist() == [[-100, 2, 3], [4, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_the_order_has_batches_of_similar_length_and_leaves_nothing_out() -> None:
    lengths = random.Random(0).choices(range(10, 500), k=204)
    order = training_order(lengths, 408, batch_size=8, seed=1)
    assert sorted(order) == sorted([*range(204)] * 2)
    assert order == training_order(lengths, 408, batch_size=8, seed=1)
    assert order != training_order(lengths, 408, batch_size=8, seed=2)
    batches = [order[start : start + 8] for start in range(0, 408, 8)]
    spread = sum(max(lengths[i] for i in b) - min(lengths[i] for i in b) for b in batches) / 51
    assert spread < 30, "random batches of eight spread over about 380"
    means = [sum(lengths[i] for i in batch) for batch in batches]
    assert means != sorted(means), "long and short batches are mixed"
