"""The loop's arguments, and the lines that it writes where there is no terminal."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainingArguments

from training.data.batches import Collator
from training.data.conversations import exchange
from training.data.recipe import Recipe, make_recipe
from training.data.rendering import Renderer
from training.data.tokenization import tokenize_conversation
from training.models.base_model import load_model, load_tokenizer
from training.models.lora import add_lora
from training.run.trainer import _arguments, answer_loss, newest_checkpoint, step_of


def test_one_gpu_is_used_where_two_are_visible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two, Trainer would wrap the model in DataParallel and double the batch."""
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: 2))
    recipe = make_recipe({"batch_size": 8, "accumulation": 2})
    arguments = _arguments(recipe, tmp_path, has_validation=True)
    assert arguments.n_gpu == 1
    assert arguments.train_batch_size == arguments.eval_batch_size == 4


def test_the_newest_checkpoint_is_the_one_of_the_last_step(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    for step in (2, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").touch()
    (tmp_path / "checkpoint-99").mkdir()  # one that was never finished
    assert step_of(newest_checkpoint(tmp_path)) == 10


DATA = [
    exchange(f"{word} {n}", answer)
    for n in range(4)
    for word, answer in (("ping", "pong"), ("tick", "tock"))
]


def recipe(**changes: Any) -> Recipe:
    values = {"rank": 2, "num_steps": 8, "batch_size": 4, "validation_share": 0.25, "patience": 0}
    return make_recipe({**values, **changes})


def test_the_loss_is_the_models_own(tiny_llama: Path) -> None:
    tokenizer = load_tokenizer(tiny_llama)
    model = add_lora(load_model(tiny_llama, torch.float32), recipe())
    samples = [s for chat in DATA for s in tokenize_conversation(Renderer(tokenizer), chat)]
    batch = Collator(tokenizer.pad_token_id)(samples)
    total, count = answer_loss(model, batch)
    assert torch.isclose(total / count, model(**batch).loss)
