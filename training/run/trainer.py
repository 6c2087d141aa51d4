"""The training loop: transformers' Trainer on one device, with loss only on answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch.nn import functional
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainingArguments

from training.data.batches import Collator
from training.data.recipe import Recipe
from training.data.tokenization import IGNORED_LABEL, Sample
from training.errors import TrainingError
from training.models.device import chosen_device
from training.run.progress import LogLines, ProgressBar

NUM_LOOKS = 8
"""Number of looks in a run: at each it measures the validation loss and writes a checkpoint."""
MAX_CHECKPOINTS = 2


class NotFinite(TrainingError):
    """The loss or its gradient is no longer finite. The weights are those of the step before."""


def answer_loss(model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, int]:
    """Return the summed cross-entropy of the answers' tokens, in nats, and their number."""
    logits, labels = answer_logits(model, batch)
    return functional.cross_entropy(logits, labels, reduction="sum"), len(labels)


def answer_logits(model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits of the answers' tokens, of shape (tokens, vocabulary), and those tokens.

    The head is computed only at those positions: with a large vocabulary, the logits of a prompt
    would take more memory than a small model.
    """
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    states = causal.model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
    ).last_hidden_state
    labels = batch["labels"][:, 1:]
    is_answer = labels != IGNORED_LABEL
    return causal.lm_head(states[:, :-1][is_answer]).float(), labels[is_answer]


class _AnswerTrainer(Trainer):  # type: ignore[misc]
    """Learns only from answers, and stops before a step whose loss or gradient isn't finite."""

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        # In full fine-tuning, weights and updates stay float32, and products are bfloat16.
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


class _OneDevice(TrainingArguments):  # type: ignore[misc]
    """Arguments of a run on one device.

    If several GPUs are visible, Trainer would wrap the model in `DataParallel`. Our loss can't use
    such a model, and a step would learn from more examples than the recipe says.
    """

    @property
    def n_gpu(self) -> int:
        """Return the number of GPUs that the run uses, 0 or 1."""
        return min(1, int(super().n_gpu))


def run_training(
    model: Any,
    recipe: Recipe,
    samples: Sequence[Sample],
    validation: Sequence[Sample],
    pad_token_id: int,
    checkpoints: Path,
) -> list[dict[str, float]]:
    """Train on the samples in their order. The model ends with the weights of its best look.

    Continues from the newest checkpoint in `checkpoints`, if there is one. Returns the log, whose
    entries have `step` and `loss` or `eval_loss`.

    Raises:
        NotFinite: the loss or its gradient stopped being finite.
    """
    checkpoints.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True)
    progress = ProgressBar(console) if console.is_terminal else LogLines(console)
    trainer = _AnswerTrainer(
        model=model,
        args=_arguments(recipe, checkpoints, has_validation=bool(validation)),
        train_dataset=samples,
        eval_dataset=validation or None,
        data_collator=Collator(pad_token_id),
        callbacks=[progress],
    )
    trainer.model_accepts_loss_kwargs = True  # so that it counts the tokens of a step
    trainer.remove_callback(PrinterCallback)
    if validation and recipe.patience:
        trainer.add_callback(EarlyStoppingCallback(recipe.patience))
    try:
        trainer.train(resume_from_checkpoint=newest_checkpoint(checkpoints))
    finally:
        progress.close()
    log: list[dict[str, float]] = trainer.state.log_history
    return log


def newest_checkpoint(checkpoints: Path) -> str | None:
    """Return the directory of the last complete checkpoint, or None if there is none."""
    found = [str(path.parent) for path in checkpoints.glob("checkpoint-*/trainer_state.json")]
    return max(found, key=step_of, default=None)


def step_of(checkpoint: str | None) -> int:
    """Return the step after which a checkpoint was written, or 0 if there is none."""
    return int(checkpoint.rpartition("-")[2]) if checkpoint else 0


def _arguments(recipe: Recipe, checkpoints: Path, *, has_validation: bool) -> _OneDevice:
    look_every = max(1, -(-recipe.num_steps // NUM_LOOKS))
    return _OneDevice(
        output_dir=str(checkpoints),
        max_steps=recipe.num_steps,
        per_device_train_batch_size=recipe.batch_size // recipe.accumulation,
        per_device_eval_batch_size=recipe.batch_size // recipe.accumulation,
        gradient_accumulation_steps=recipe.accumulation,
        gradient_checkpointing=recipe.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="cosine",
        # The first warm-up step has the rate 0: a run needs one more step to learn anything.
        warmup_steps=min(round(recipe.num_steps * recipe.warmup_share), recipe.num_steps - 1),
        weight_decay=0.0,
        train_sampling_strategy="sequential",  # the samples are already in training order
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
        use_cpu=chosen_device().type == "cpu",
        dataloader_pin_memory=False,
    )
