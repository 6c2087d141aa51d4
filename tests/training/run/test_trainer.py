"""The loop's arguments, and the lines that it writes where there is no terminal."""

import io
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console
from transformers import TrainingArguments

from training.data.recipe import make_recipe
from training.run.progress import LogLines
from training.run.trainer import _arguments, newest_checkpoint, step_of


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


@pytest.mark.parametrize("has_validation", [True, False])
def test_without_a_terminal_there_is_a_line_now_and_then(has_validation: bool) -> None:
    out = io.StringIO()
    lines = LogLines(Console(file=out, width=20))
    args = SimpleNamespace(eval_strategy="steps" if has_validation else "no")
    lines.on_train_begin(args, SimpleNamespace(global_step=0, max_steps=80), None)
    for step in range(1, 81):
        state = SimpleNamespace(global_step=step, max_steps=80)
        lines.on_log(args, state, None, logs={"loss": 2 - step / 100})
        if has_validation and step % 10 == 0:
            lines.on_log(args, state, None, logs={"eval_loss": 1.5})
    lines.on_log(args, SimpleNamespace(global_step=80, max_steps=80), None, logs={"runtime": 1.0})
    lines.close()
    written = out.getvalue().splitlines()
    assert [line.split(":")[0] for line in written] == [
        f"step {step} of 80" for step in (1, *range(10, 81, 10))
    ]
    assert written[0].startswith("step 1 of 80: loss 1.990, ")
    assert ("validation loss 1.500" in written[-1]) == has_validation
    assert written[-1].endswith("0 min 0 s left")
