"""`loraplex train`, `quantize`: the training package's, imported only when they are called."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from server.cli.client import call
from server.cli.tables import print_table

if TYPE_CHECKING:
    from training.data.datasets import Split
    from training.data.recipe import Recipe
    from training.run.record import RunRecord

BaseFlag = Annotated[Path | None, typer.Option(help="Model directory; default: the bundled base.")]
NewDirectory = Annotated[Path, typer.Argument(help="A new directory for what is made.")]


@contextmanager
def explained() -> Iterator[None]:
    """End the command with code 2 and one message, if a training job can't be run as asked."""
    from training.errors import TrainingError

    try:
        yield
    except TrainingError as error:
        Console(stderr=True).print(f"loraplex: {error}", markup=False, soft_wrap=True)
        raise typer.Exit(2) from None


def base_or_bundled(base: Path | None) -> Path:
    """The base that was named, or the bundled one."""
    from server.bundled_base import ensure_bundled_base

    return base or ensure_bundled_base()


def train(
    output: NewDirectory,
    data: Annotated[
        Path | None, typer.Option(help="Chat-format JSONL; instead of the recipe's dataset.")
    ] = None,
    test: Annotated[
        Path | None, typer.Option(help="Chat-format JSONL to score base and result on at the end.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="A bundled recipe's name, or a TOML file.")
    ] = None,
    base: BaseFlag = None,
    method: Annotated[
        str | None, typer.Option(help="lora; qlora: over a base in NF4; full: every weight.")
    ] = None,
    rank: Annotated[int | None, typer.Option(help="Rank of the update.")] = None,
    alpha: Annotated[int | None, typer.Option(help="Scale: the update times alpha / rank.")] = None,
    target: Annotated[
        list[str] | None, typer.Option(help="Module to adapt, such as q_proj; repeat for more.")
    ] = None,
    rslora: Annotated[
        bool | None, typer.Option("--rslora", help="Scale by alpha / sqrt(rank).")
    ] = None,
    init: Annotated[
        str | None, typer.Option(help="How A begins: default (Kaiming), gaussian, orthogonal.")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples a step.")] = None,
    accumulation: Annotated[
        int | None, typer.Option(help="Parts that a step's examples are cut into, for memory.")
    ] = None,
    gradient_checkpointing: Annotated[
        bool | None,
        typer.Option("--gradient-checkpointing", help="Compute activations twice, for memory."),
    ] = None,
    validation_share: Annotated[
        float | None, typer.Option(help="Share of the examples kept to watch the loss on.")
    ] = None,
    patience: Annotated[
        int | None, typer.Option(help="Looks without progress before it stops; 0: never stop.")
    ] = None,
    max_length: Annotated[int | None, typer.Option(help="Longest example, in tokens.")] = None,
    truncate: Annotated[
        bool | None, typer.Option("--truncate", help="Cut longer examples, don't refuse them.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of data and training.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a run that was cut off.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Begin even where memory seems too little.")
    ] = False,
    register: Annotated[
        str | None, typer.Option(help="Register the adapter under this name on LORAPLEX_URL.")
    ] = None,
    tenant: Annotated[
        str | None,
        typer.Option(help="Whose adapter it is registered as; default: the key's own tenant."),
    ] = None,
) -> None:
    """Train an adapter, or with --method full a whole model; score it on what was held out."""
    from training.data.recipe import load_recipe, make_recipe
    from training.run.train import train as run

    changes = {
        "method": method,
        "rank": rank,
        "alpha": alpha,
        "targets": target,
        "rslora": rslora,
        "init": init,
        "learning_rate": learning_rate,
        "num_steps": steps,
        "batch_size": batch_size,
        "accumulation": accumulation,
        "gradient_checkpointing": gradient_checkpointing,
        "validation_share": validation_share,
        "patience": patience,
        "max_length": max_length,
        "truncate": truncate,
        "seed": seed,
    }
    with explained():
        plan = load_recipe(recipe, **changes) if recipe else make_recipe(changes)
        if register and not plan.has_adapter:
            _refuse("--register takes adapters; serve a whole model with loraplex serve --base")
        if register:
            call("GET", "/admin/whoami")  # said now, not after the training: no server, or no right
        split = data_of(plan, data, test)
        base = base_or_bundled(base)
        record = run(base, split.train, plan, output, resume=resume, force=force)
        _evaluate_run(record, base, output, split, plan)
    kind = "adapter" if plan.has_adapter else "model"
    print(
        f"{kind} in {output}: {record.num_trainable:,} trained parameters, "
        f"{record.num_steps_run} steps in {record.train_seconds:.0f} s, "
        f"best at step {record.best_step}, peak {record.peak_memory_mib:,} MiB"
    )
    if register:
        _register(register, tenant, output, record)


def _refuse(message: str) -> None:
    from training.errors import TrainingError

    raise TrainingError(message)


def data_of(plan: Recipe, data: Path | None, test: Path | None) -> Split:
    """What to train on and what to score on: files, or the recipe's dataset."""
    from training.data.conversations import read_conversations
    from training.data.datasets import Split, load_dataset

    held_out = read_conversations(test) if test else []
    if data is not None:
        return Split(read_conversations(data), held_out)
    if not plan.dataset:
        _refuse("nothing to train on: give --data or --recipe")
    split = load_dataset(plan.dataset, size=plan.num_examples, seed=plan.seed)
    return Split(split.train, held_out) if test else split


def _evaluate_run(record: RunRecord, base: Path, output: Path, split: Split, plan: Recipe) -> None:
    """Score the base and what was trained on what was held out; into the record, and printed."""
    from training.evaluation.candidates import LocalModel
    from training.evaluation.evaluate import evaluate

    if not split.test:
        return
    before = evaluate(LocalModel(base), base, split.test).summary()
    trained = LocalModel(base, output) if plan.has_adapter else LocalModel(output)
    after = evaluate(trained, base, split.test).summary()
    record.evaluation = {"num_examples": len(split.test), "base": before, "trained": after}
    record.write_json(output)
    table = Table("held out", "base", "trained", "expected", title=f"{len(split.test)} examples")
    for metric, value in after.items():
        expected = f"{plan.expected[metric]:.2f}" if metric in plan.expected else ""
        table.add_row(metric, f"{before[metric]:.3f}", f"{value:.3f}", expected)
    print_table(table)


def _register(name: str, tenant: str | None, directory: Path, record: RunRecord) -> None:
    """Upload the adapter as the name's next version, with what is known of its training."""
    from server.cli.adapters import print_verdict, upload

    facts = asdict(record)
    kept = ("base", "base_sha256", "base_quantization", "data_sha256", "evaluation", "recipe")
    metadata: dict[str, Any] = {"training": {key: facts[key] for key in kept}}
    form = {"name": name, "metadata": json.dumps(metadata)}
    if tenant is not None:
        form["tenant"] = tenant
    print_verdict(upload(directory, form).json())


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
    method: Annotated[
        str,
        typer.Option(
            help="w4a16: 4-bit weights; nf4: BF16 ones rounded to NF4, what QLoRA trains over."
        ),
    ] = "w4a16",
    group_size: Annotated[
        int, typer.Option(help="Weights that share a scale: 32, 64 or 128; fewer keep more.")
    ] = 32,
) -> None:
    """Make a 4-bit checkpoint of a base, to serve with `loraplex serve --base OUTPUT`.

    With --method nf4 the one that adapters trained with QLoRA belong over. W4A16 is calibrated
    (GPTQ) with --data or --recipe; else each weight is rounded to the nearest value.
    """
    from training.data.conversations import read_conversations
    from training.data.recipe import load_recipe_data
    from training.quantization.calibration import sample_texts
    from training.quantization.w4a16 import quantize_checkpoint

    with explained():
        base = base_or_bundled(base)
        if method == "nf4":
            _quantize_to_nf4(base, output)
            return
        if method != "w4a16":
            _refuse(f"--method is w4a16 or nf4, not {method}")
        conversations = [chat for file in data or [] for chat in read_conversations(file)]
        for name in recipe or []:
            conversations += load_recipe_data(name).train
        samples = sample_texts(base, conversations, num_samples) if conversations else None
        quantize_checkpoint(base, output, group_size, samples)
    print(f"4-bit checkpoint in {output}; serve it with: loraplex serve --base {output}")


def _quantize_to_nf4(base: Path, output: Path) -> None:
    from training.quantization.nf4 import round_checkpoint_to_nf4

    round_checkpoint_to_nf4(base, output)
    print(f"NF4 checkpoint in {output}; serve it with: loraplex serve --base {output}")
