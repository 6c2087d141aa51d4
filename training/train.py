"""LoRA training (Hu et al., 2021, arXiv:2106.09685) with transformers and peft."""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from training.data import Collator, Conversation, Sample, tokenize
from training.errors import DataError, TrainingError
from training.recipe import Recipe


def train_adapter(base: Path, conversations: list[Conversation], recipe: Recipe, out: Path) -> None:
    """Train a LoRA adapter on the base and write it to `out` in PEFT's format.

    Writes `adapter_config.json`, `adapter_model.safetensors` (bfloat16) and `training_run.json`
    with the recipe, digests, versions and the loss curve.

    Raises:
        TrainingError: the base can't be loaded or lacks the target modules, or `out` is taken.
        DataError: an example is longer than `recipe.max_length`, or the loss stops being finite.
    """
    from transformers import Trainer, TrainingArguments, set_seed

    if out.exists() and any(out.iterdir()):
        raise TrainingError(f"{out} isn't empty; name a new directory")
    set_seed(recipe.seed)
    tokenizer, model = _load_base(base)
    samples = _tokenize_all(tokenizer, conversations, recipe.max_length)
    adapted = _add_lora(model, recipe)
    # The path means nothing elsewhere; the gate compares the name.
    adapted.peft_config["default"].base_model_name_or_path = base.name
    out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(
        model=adapted,
        args=TrainingArguments(
            output_dir=tempfile.gettempdir(),  # nothing is written there: save_strategy is "no"
            max_steps=recipe.num_steps,
            per_device_train_batch_size=recipe.batch_size,
            learning_rate=recipe.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=max(1, round(recipe.num_steps * recipe.warmup_share)),
            weight_decay=0.0,
            logging_steps=max(1, min(10, recipe.num_steps // 4)),
            save_strategy="no",
            report_to=[],
            disable_tqdm=not sys.stderr.isatty(),
            remove_unused_columns=False,
            seed=recipe.seed,
            use_cpu=not torch.cuda.is_available(),
            dataloader_pin_memory=False,
        ),
        train_dataset=samples,
        data_collator=Collator(tokenizer.pad_token_id or tokenizer.eos_token_id),
    )
    started = time.monotonic()
    trainer.train()
    losses = [(row["step"], row["loss"]) for row in trainer.state.log_history if "loss" in row]
    if not all(torch.isfinite(torch.tensor(loss)) for _, loss in losses):
        raise DataError("the loss stopped being finite; try a lower learning rate")
    _save_bfloat16(adapted, out)
    _write_run_record(out, base, conversations, recipe, losses, time.monotonic() - started)


def _load_base(base: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(base)
        return tokenizer, AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    except (OSError, ValueError) as error:
        raise TrainingError(f"can't load the base {base}: {error}") from error


def _tokenize_all(tokenizer: Any, data: list[Conversation], max_length: int) -> list[Sample]:
    samples = [tokenize(tokenizer, conversation) for conversation in data]
    too_long = [i for i, sample in enumerate(samples, 1) if len(sample.input_ids) > max_length]
    if too_long:
        raise DataError(
            f"{len(too_long)} example(s) are longer than max_length={max_length} tokens, "
            f"the first is number {too_long[0]}: shorten them or raise --max-length"
        )
    return samples


def _add_lora(model: Any, recipe: Recipe) -> Any:
    from peft import LoraConfig, get_peft_model

    num_layers = model.config.num_hidden_layers
    layers = None
    if recipe.num_last_layers:
        layers = list(range(max(0, num_layers - recipe.num_last_layers), num_layers))
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        target_modules=list(recipe.targets),
        layers_to_transform=layers,
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise TrainingError(f"these targets don't fit the base: {error}") from error


def _save_bfloat16(adapted: Any, out: Path) -> None:
    """Save in the dtype that is served: half the size of PEFT's float32, and no surprise later."""
    adapted.save_pretrained(out)
    weights = out / "adapter_model.safetensors"
    tensors = {k: v.to(torch.bfloat16).contiguous() for k, v in load_file(weights).items()}
    save_file(tensors, weights, metadata={"format": "pt"})
    (out / "README.md").unlink(missing_ok=True)  # PEFT's empty model card


def _write_run_record(
    out: Path,
    base: Path,
    conversations: list[Conversation],
    recipe: Recipe,
    losses: list[tuple[int, float]],
    seconds: float,
) -> None:
    data = json.dumps(conversations, sort_keys=True).encode()
    record = {
        "recipe": asdict(recipe),
        "base": base.name,
        "num_examples": len(conversations),
        "data_sha256": hashlib.sha256(data).hexdigest(),
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
        "train_seconds": round(seconds, 1),
        "loss": losses,
    }
    (out / "training_run.json").write_text(json.dumps(record, indent=1) + "\n")
