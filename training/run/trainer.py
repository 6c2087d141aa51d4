"""The loop: transformers' Trainer with a loss that computes little, and stops when it is lost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.nn import functional
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from training.data.conversations import IGNORED_LABEL, Collator, Sample
from training.data.recipe import Recipe
from training.errors import TrainingError

NUM_LOOKS = 8
"""How often a run looks at the validation loss and writes a checkpoint."""
MAX_CHECKPOINTS = 2


class NotFinite(TrainingError):
    """The loss or its gradients stopped being finite; the weights are those of the step before."""


def answer_loss(model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, int]:
    """The summed cross-entropy of the answers' tokens, and how many they are.

    The head is computed at those positions only: with a large vocabulary the logits of a prompt
    take more memory than a small model.
    """
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    states = causal.model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
    ).last_hidden_state
    labels = batch["labels"][:, 1:]
    is_answer = labels != IGNORED_LABEL
    logits = causal.lm_head(states[:, :-1][is_answer]).float()
    loss = functional.cross_entropy(logits, labels[is_answer], reduction="sum")
    return loss, int(is_answer.sum())


class _AnswerTrainer(Trainer):  # type: ignore[misc]
    """Learns from answers alone, in bfloat16 arithmetic, and never steps on what isn't finite."""

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        # For full fine-tuning: weights and updates stay float32, products are bfloat16.
        device = inputs["input_ids"].device.type
        with torch.autocast(device, dtype=torch.bfloat16, enabled=model.dtype == torch.float32):
            total, count = answer_loss(model, inputs)
        loss = total / (num_items_in_batch if num_items_in_batch is not None else count)
        return (loss, {}) if return_outputs else loss

    def training_step(self, model: Any, *arguments: Any, **options: Any) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(model, *arguments, **options)
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if not (loss.isfinite() and norm.isfinite()):
            raise NotFinite(
                f"at step {self.state.global_step + 1} the loss was {loss.item():g} and its "
                f"gradient {norm.item():g}: try a lower learning rate than "
                f"{self.args.learning_rate:g}"
            )
        return loss


class _ProgressBar(TrainerCallback):  # type: ignore[misc]
    """One line on a terminal: steps, loss, validation loss, time left."""

    def __init__(self) -> None:
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task("")
        self._figures: dict[str, float] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._bar.update(self._task, total=state.max_steps, completed=state.global_step)
        self._bar.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._bar.update(self._task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self._figures |= {k: v for k, v in (logs or {}).items() if k in ("loss", "eval_loss")}
        text = ", ".join(f"{name} {value:.3f}" for name, value in self._figures.items())
        self._bar.update(self._task, description=text.replace("eval_loss", "validation"))

    def close(self) -> None:
        """Give the terminal back; also where training failed."""
        self._bar.stop()


def run_training(
    model: Any,
    recipe: Recipe,
    samples: Sequence[Sample],
    validation: Sequence[Sample],
    pad_token_id: int,
    checkpoints: Path,
) -> list[dict[str, float]]:
    """Train on these samples, in this order; the model ends as it was at its best look.

    Goes on from the newest checkpoint in `checkpoints`, if there is one. Returns what was logged:
    entries with `step` and `loss` or `eval_loss`.

    Raises:
        NotFinite: the loss went astray.
    """
    checkpoints.mkdir(parents=True, exist_ok=True)
    bar = _ProgressBar()
    trainer = _AnswerTrainer(
        model=model,
        args=_arguments(recipe, checkpoints, has_validation=bool(validation)),
        train_dataset=samples,
        eval_dataset=validation or None,
        data_collator=Collator(pad_token_id),
        callbacks=[bar],
    )
    trainer.model_accepts_loss_kwargs = True  # so that it counts the tokens of a whole step
    trainer.remove_callback(PrinterCallback)
    if validation and recipe.patience:
        trainer.add_callback(EarlyStoppingCallback(recipe.patience))
    try:
        trainer.train(resume_from_checkpoint=newest_checkpoint(checkpoints))
    finally:
        bar.close()
    log: list[dict[str, float]] = trainer.state.log_history
    return log


def newest_checkpoint(checkpoints: Path) -> str | None:
    """The directory of the last whole checkpoint, None if there is none."""
    found = [str(path.parent) for path in checkpoints.glob("checkpoint-*/trainer_state.json")]
    return max(found, key=step_of, default=None)


def step_of(checkpoint: str | None) -> int:
    """The step after which a checkpoint was written; 0 for none."""
    return int(checkpoint.rpartition("-")[2]) if checkpoint else 0


def _arguments(recipe: Recipe, checkpoints: Path, *, has_validation: bool) -> TrainingArguments:
    look_every = max(1, -(-recipe.num_steps // NUM_LOOKS))
    return TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=recipe.num_steps,
        per_device_train_batch_size=recipe.batch_size // recipe.accumulation,
        per_device_eval_batch_size=recipe.batch_size // recipe.accumulation,
        gradient_accumulation_steps=recipe.accumulation,
        gradient_checkpointing=recipe.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, round(recipe.num_steps * recipe.warmup_share)),
        weight_decay=0.0,
        train_sampling_strategy="sequential",  # the samples are in training order already
        logging_steps=1,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if has_validation else "no",
        eval_steps=look_every,
        prediction_loss_only=True,
        save_steps=look_every,
        save_total_limit=MAX_CHECKPOINTS,
        load_best_model_at_end=has_validation,
        metric_for_best_model="eval_loss" if has_validation else None,
        greater_is_better=False if has_validation else None,
        restore_callback_states_from_checkpoint=True,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        seed=recipe.seed,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=False,
    )
