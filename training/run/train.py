"""Trains on a base: LoRA (arXiv:2106.09685), QLoRA (arXiv:2305.14314) or full fine-tuning."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from adapters_registry.check.base import short_name
from training.data.batches import training_order
from training.data.conversations import Conversation
from training.data.recipe import Recipe
from training.data.rendering import Renderer
from training.data.tokenization import Sample
from training.errors import TrainingError
from training.models.base_model import (
    CHAT_TEMPLATE_FILE,
    base_digest,
    known_family,
    load_model,
    load_tokenizer,
    quantization_in_training,
)
from training.models.checkpoint import Checkpoint, require_new, whole_or_not_at_all
from training.models.device import chosen_device, reset_gpu_peak
from training.models.lora import add_lora, lora_config, save_adapter
from training.plan.free_memory import free_memory
from training.plan.memory import MIB, Shape, training_memory
from training.run.examples import make_examples
from training.run.record import RECORD_FILE, RunRecord, begin_record
from training.run.trainer import NotFinite, newest_checkpoint, run_training, step_of


def train(
    base: Path,
    conversations: list[Conversation],
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    force: bool = False,
    say: Callable[[str], None] | None = None,
) -> RunRecord:
    """Train on the base, and write an adapter (with `full` a full model) to `out`.

    `out` also gets `training_run.json` with recipe, digests, versions and losses, and a plot of the
    losses. While a run lasts, its checkpoints are in `OUT.checkpoints`. `resume` continues from the
    newest of them. `force` begins even if the plan needs more memory than is free. `say` gets the
    notes about the data line by line; the record keeps them.

    Raises:
        TrainingError: the base can't be loaded or lacks the targets, `out` isn't empty, the result
            couldn't be served, or the loss stops being finite (the checkpoints then stay).
        DataError: examples are too long or too few.
    """
    from transformers import set_seed

    require_new(out)
    config = Checkpoint.open(base).config
    family = known_family(config, base)
    recipe = replace(recipe, targets=family.own_names(recipe.targets))
    renderer = Renderer(load_tokenizer(base, recipe.chat_template), recipe.date)
    if recipe.has_adapter:
        lora_config(recipe, num_layers=config["num_hidden_layers"])
    examples = make_examples(base, conversations, recipe, renderer)
    samples = examples.train
    if say:
        for note in examples.notes:
            say(note)
    if not force:
        _check_memory(base, recipe, samples)
    quantization = quantization_in_training(base, recipe.method)
    name, digest = short_name(str(base.absolute())), base_digest(base)
    record = begin_record(
        recipe, name, digest, quantization, conversations, examples.num_validation
    )
    record.num_duplicates, record.notes = examples.num_duplicates, examples.notes
    checkpoints = _checkpoints_for(out, record, resume=resume)
    set_seed(recipe.seed)
    reset_gpu_peak(chosen_device())
    model = _load(base, recipe)
    checkpoints.mkdir(parents=True, exist_ok=True)
    record.write_json(checkpoints)
    record.num_trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    lengths = [len(sample.input_ids) for sample in samples]
    num_examples = recipe.num_steps * recipe.batch_size
    order = training_order(lengths, num_examples, recipe.batch_size, recipe.seed)
    first_step = step_of(newest_checkpoint(checkpoints))
    started = time.monotonic()
    try:
        log = run_training(
            model,
            recipe,
            [samples[index] for index in order],
            examples.validation,
            renderer.tokenizer.pad_token_id,
            checkpoints,
        )
    except NotFinite as error:
        last = newest_checkpoint(checkpoints)
        kept_at = f"the last good checkpoint is {last}" if last else "there was no checkpoint yet"
        raise TrainingError(f"{error}; {kept_at}") from None
    record.follow(log)
    # If the run was resumed, only its last part was timed here.
    timed = (time.monotonic() - started) / max(1, record.num_steps_run - first_step)
    record.train_seconds = round(timed * record.num_steps_run, 1)
    with whole_or_not_at_all(out) as scratch:
        _save(model, recipe, base, quantization, scratch)
        record.write(scratch)
    shutil.rmtree(checkpoints)
    return record


def _check_memory(base: Path, recipe: Recipe, samples: list[Sample]) -> None:
    """Check that the memory that a run needs by the plan is free, here or in the container.

    Raises:
        TrainingError: it isn't. The message has the plan's figures.
    """
    free = free_memory()
    length = max(len(sample.input_ids) for sample in samples)
    answers = sum(len(sample.answer_ids) for sample in samples)
    share = answers / sum(len(sample.input_ids) for sample in samples)
    memory = training_memory(Shape.of(Checkpoint.open(base).config), recipe, length, share)
    if memory.peak > free:
        parts = ", ".join(f"{name} {size / MIB:,.0f}" for name, size in asdict(memory).items())
        raise TrainingError(
            f"this takes {memory.peak / MIB:,.0f} MiB by the plan ({parts}), and {free / MIB:,.0f} "
            "are free: try --gradient-checkpointing, --accumulation, a shorter --max-length or "
            "--method qlora; with --force it begins anyway"
        )


def checkpoints_of(out: Path) -> Path:
    """Return where a run keeps its checkpoints until it ends."""
    return out.absolute().with_name(f"{out.name}.checkpoints")


def _checkpoints_for(out: Path, record: RunRecord, *, resume: bool) -> Path:
    """Return the directory for checkpoints. With `resume` it must hold those of this job.

    Raises:
        TrainingError: it holds checkpoints of another job; or it holds any and `resume` isn't set;
            or there are none to resume from.
    """
    directory = checkpoints_of(out)
    if (directory / RECORD_FILE).is_file():
        if not resume:
            raise TrainingError(
                f"{directory} is of a run that didn't end: continue it with --resume, or delete it"
            )
        found = json.loads((directory / RECORD_FILE).read_text(encoding="utf-8"))
        if not record.same_job(found):
            raise TrainingError(
                f"{directory} is of another job: base, data and recipe must be the same to resume"
            )
    elif resume:
        raise TrainingError(f"there is nothing to resume: {directory} holds no run")
    return directory


def _load(base: Path, recipe: Recipe) -> Any:
    """Load the model. Only the weights that are trained require gradients."""
    if not recipe.has_adapter:
        # In bfloat16 most updates would be rounded to zero.
        return load_model(base, torch.float32)
    return add_lora(load_model(base, nf4=recipe.method == "qlora"), recipe)


def _save(model: Any, recipe: Recipe, base: Path, quantization: str, out: Path) -> None:
    """Write the adapter or model, and its chat template if it isn't the base's."""
    if recipe.has_adapter:
        save_adapter(model, out, base, quantization)
    else:
        Checkpoint.open(base).copy_other_files(out)
        model.to(torch.bfloat16).save_pretrained(out)
    if recipe.chat_template:
        (out / CHAT_TEMPLATE_FILE).write_text(recipe.chat_template, encoding="utf-8")
