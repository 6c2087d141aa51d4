"""`loraplex train` and `quantize`: the training package's, imported only when they are called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def train(
    output: Annotated[Path, typer.Argument(help="A new directory for the adapter.")],
    data: Annotated[
        Path | None, typer.Option(help="Chat-format JSONL; instead of the recipe's dataset.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="A bundled recipe's name, or a TOML file.")
    ] = None,
    base: Annotated[
        Path | None, typer.Option(help="Model directory; default: the bundled base.")
    ] = None,
    rank: Annotated[int | None, typer.Option(help="Rank of the update.")] = None,
    alpha: Annotated[int | None, typer.Option(help="Scale: the update times alpha / rank.")] = None,
    target: Annotated[
        list[str] | None, typer.Option(help="Module to adapt, such as q_proj; repeat for more.")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples a step.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Longest example, in tokens.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of data and training.")] = None,
) -> None:
    """Train a LoRA adapter, and say how it does on what was held out."""
    from server.bundled_base import ensure_bundled_base
    from training.data import read_conversations
    from training.datasets import Split, load_dataset
    from training.errors import TrainingError
    from training.evaluate import exact_match
    from training.recipe import load_recipe, make_recipe
    from training.train import train_adapter

    changes = {
        "rank": rank,
        "alpha": alpha,
        "targets": target,
        "learning_rate": learning_rate,
        "num_steps": steps,
        "batch_size": batch_size,
        "max_length": max_length,
        "seed": seed,
    }
    try:
        plan = load_recipe(recipe, **changes) if recipe else make_recipe(changes)
        if data is not None:
            split = Split(read_conversations(data), [])
        elif plan.dataset:
            split = load_dataset(plan.dataset, size=plan.num_examples, seed=plan.seed)
        else:
            raise TrainingError("nothing to train on: give --data or --recipe")
        base = base or ensure_bundled_base()
        train_adapter(base, split.train, plan, output)
        if split.test:
            before, after = (exact_match(base, split.test, a) for a in (None, output))
            print(
                f"exact match on {len(split.test)} held out: base {before:.2f}, adapter {after:.2f}"
            )
    except TrainingError as error:
        Console(stderr=True).print(f"loraplex: {error}", markup=False, soft_wrap=True)
        raise typer.Exit(2) from None
    print(f"adapter in {output}")


def quantize(
    output: Annotated[Path, typer.Argument(help="A new directory for the 4-bit checkpoint.")],
    base: Annotated[
        Path | None,
        typer.Option(help="BF16 or FP16 model directory; default: the bundled base."),
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(help="Chat-format JSONL to calibrate with; repeat for more."),
    ] = None,
    recipe: Annotated[
        list[str] | None,
        typer.Option(help="A recipe to calibrate with the training data of; repeat for more."),
    ] = None,
    num_samples: Annotated[int, typer.Option(help="Conversations to calibrate with.", min=1)] = 128,
    group_size: Annotated[
        int, typer.Option(help="Weights that share a scale: 32, 64 or 128; fewer keep more.")
    ] = 32,
) -> None:
    """Make a 4-bit checkpoint of a base, to serve with `loraplex serve --base OUTPUT`.

    Calibrated (GPTQ) with --data or --recipe; else each weight is rounded to the nearest value.
    """
    from server.bundled_base import ensure_bundled_base
    from training.calibration import sample_texts
    from training.data import read_conversations
    from training.errors import TrainingError
    from training.quantize import quantize_checkpoint
    from training.recipe import load_recipe_data

    try:
        base = base or ensure_bundled_base()
        conversations = [chat for file in data or [] for chat in read_conversations(file)]
        for name in recipe or []:
            conversations += load_recipe_data(name).train
        samples = sample_texts(base, conversations, num_samples) if conversations else None
        quantize_checkpoint(base, output, group_size, samples)
    except TrainingError as error:
        Console(stderr=True).print(f"loraplex: {error}", markup=False, soft_wrap=True)
        raise typer.Exit(2) from None
    print(f"4-bit checkpoint in {output}; serve it with: loraplex serve --base {output}")
