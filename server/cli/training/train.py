"""The command `loraplex train`, which trains an adapter or a full model on the user's data."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from adapters_registry.errors import InvalidName
from adapters_registry.names import check_name
from server.cli.client import call
from server.cli.console import say
from server.cli.tables import print_table
from server.cli.training.shared import (
    DATA_HELP,
    BaseFlag,
    NewDirectory,
    base_or_bundled,
    data_of,
    explained,
    refuse,
    text_of,
)

if TYPE_CHECKING:
    from training.data.datasets.split import Split
    from training.data.recipe import Recipe
    from training.run.record import RunRecord

EXAMPLES = """Examples:

loraplex train my-adapter --data chats.jsonl --test held-out.jsonl --register my-adapter

loraplex train my-adapter --data chats.jsonl --method qlora --rank 32 --base DIRECTORY

loraplex train my-model --recipe smart-home-r16 --method full
"""


def train(
    output: NewDirectory,
    data: Annotated[
        Path | None,
        typer.Option(help=f"{DATA_HELP} It replaces the recipe's data set."),
    ] = None,
    test: Annotated[
        Path | None,
        typer.Option(help="Held-out data on which base and result are scored at the end."),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="The name of a bundled recipe, or a TOML file. Other flags override it."),
    ] = None,
    base: BaseFlag = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="lora trains an adapter, qlora an adapter over a base in 4 bits (NF4), and full "
            "all weights of the base."
        ),
    ] = None,
    rank: Annotated[
        int | None, typer.Option(help="The rank of the adapter's matrices, for example 16.")
    ] = None,
    alpha: Annotated[
        int | None, typer.Option(help="The adapter's update is multiplied by alpha / rank.")
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(help="A module to adapt, such as q_proj. Repeat it for more modules."),
    ] = None,
    rslora: Annotated[
        bool | None,
        typer.Option("--rslora", help="Multiply by alpha / sqrt(rank) instead of alpha / rank."),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(help="How matrix A is initialised: default (Kaiming), gaussian, orthogonal."),
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="The highest learning rate, for example 1e-3.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="How many optimiser steps to run.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="How many examples each step learns from.")
    ] = None,
    accumulation: Annotated[
        int | None,
        typer.Option(
            help="Cut each step's examples into this many parts, which run in turn, to save memory."
        ),
    ] = None,
    gradient_checkpointing: Annotated[
        bool | None,
        typer.Option(
            "--gradient-checkpointing",
            help="Compute activations twice instead of keeping them: slower, with less memory.",
        ),
    ] = None,
    validation_share: Annotated[
        float | None,
        typer.Option(
            help="The share of the examples that is held out to measure the validation loss, for "
            "example 0.05. Examples with the same prompt stay together."
        ),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(
            help="Stop if the validation loss doesn't fall in this many measurements. With 0, "
            "training never stops early."
        ),
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(help="The longest accepted example, in tokens.")
    ] = None,
    truncate: Annotated[
        bool | None,
        typer.Option("--truncate", help="Cut longer examples instead of refusing them."),
    ] = None,
    chat_template: Annotated[
        Path | None,
        typer.Option(
            help="A file with a chat template (Jinja) that replaces the base's. It is written "
            "beside the adapter."
        ),
    ] = None,
    date: Annotated[
        str | None,
        typer.Option(
            help="The date that a chat template gets as today's date, for example 2024-07-26. It "
            "is fixed, so that a run can be repeated on another day."
        ),
    ] = None,
    refuse_special_tokens: Annotated[
        bool | None,
        typer.Option(
            "--refuse-special-tokens",
            help="Refuse examples whose text holds special tokens, such as <|im_end|>. By default "
            "they are counted and trained on unchanged.",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The random seed.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue a run that was interrupted.")
    ] = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Begin even if the plan needs more memory than is free."),
    ] = False,
    register: Annotated[
        str | None,
        typer.Option(help="Register the adapter under this name on the server at LORAPLEX_URL."),
    ] = None,
    tenant: Annotated[
        str | None,
        typer.Option(help="The tenant that gets the adapter. By default the key's own tenant."),
    ] = None,
) -> None:
    """Train an adapter, or with --method full a full model, and score it on held-out data."""
    from training.data.recipe import load_recipe, make_recipe
    from training.run.train import train as run

    with explained():
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
            "chat_template": text_of(chat_template),
            "date": date,
            "refuse_special_tokens": refuse_special_tokens,
            "seed": seed,
        }
        plan = load_recipe(recipe, **changes) if recipe else make_recipe(changes)
        if register:
            _check_registration(register, tenant, plan)
        split = data_of(plan, data, test)
        base = base_or_bundled(base)
        record = run(base, split.train, plan, output, resume=resume, force=force, say=say)
        _evaluate_run(record, base, output, split, plan)
    _print_result(record, output, plan, register)
    if register:
        _register(register, tenant, output, record)


def _check_registration(name: str, tenant: str | None, recipe: Recipe) -> None:
    """Check before the training that the server will accept the registration.

    The request for the key's tenant also fails if the server doesn't run or doesn't know the key.
    """
    if not recipe.has_adapter:
        refuse("--register takes adapters; serve a full model with loraplex serve --base")
    try:
        check_name(name, "adapter")
    except InvalidName as error:
        refuse(str(error))
    caller = call("GET", "/admin/whoami").json()
    if tenant is None or tenant == caller["tenant"]:
        return
    if "admin" not in caller["scopes"]:
        refuse(
            f"this key belongs to the tenant {caller['tenant']!r}, so it can't register an adapter "
            f"for {tenant!r}"
        )
    call("GET", f"/admin/tenants/{tenant}")


def _evaluate_run(record: RunRecord, base: Path, output: Path, split: Split, plan: Recipe) -> None:
    """Score base and result on the held-out data, add that to the record, and print it."""
    from training.evaluation.candidates import LocalModel
    from training.evaluation.evaluate import evaluate

    if not split.test:
        return
    untrained = LocalModel(base, chat_template=plan.chat_template)
    before = evaluate(untrained, base, split.test, plan.date).summary()
    trained = LocalModel(base, output) if plan.has_adapter else LocalModel(output)
    # A full model's tokenizer is the base's, with the template that was written beside it.
    after = evaluate(trained, base if plan.has_adapter else output, split.test, plan.date).summary()
    record.evaluation = {"num_examples": len(split.test), "base": before, "trained": after}
    record.write_json(output)
    heads = ["metric", "base", "trained", *(["expected"] if plan.expected else [])]
    table = Table(*heads, title=f"Scores on {len(split.test)} held-out examples")
    for metric, value in after.items():
        expected = f"{plan.expected[metric]:.2f}" if metric in plan.expected else ""
        cells = [metric, f"{before[metric]:.3f}", f"{value:.3f}", expected]
        table.add_row(*cells[: len(heads)])
    print_table(table)


def _print_result(record: RunRecord, output: Path, plan: Recipe, registered: str | None) -> None:
    """Print the result of a training run, and the commands that come next."""
    from training.run.record import PLOT_FILE

    where = "of GPU memory" if record.peak_gpu_memory_mib else "of memory"
    print(
        f"{'adapter' if plan.has_adapter else 'model'} in {output}: {record.num_trainable:,} "
        f"trained parameters, {record.num_steps_run} steps in {record.train_seconds:.0f} s, "
        f"best at step {record.best_step}, peak {record.peak_mib:,} MiB {where}"
    )
    print(f"the losses are drawn in {output / PLOT_FILE}")
    if not plan.has_adapter:
        print(f"serve it with: loraplex serve --base {output}")
    elif registered is None:
        name = output.resolve().name.lower()
        print(f"register it with: loraplex adapters register {name} {output}")
        print(f'then ask it with: "model": "{name}" in a request to /v1/chat/completions')


def _register(name: str, tenant: str | None, directory: Path, record: RunRecord) -> None:
    """Upload the adapter as the name's next version, with facts about its training."""
    from server.cli.adapters.registration import print_verdict, upload

    facts = asdict(record)
    kept = ("base", "base_sha256", "base_quantization", "data_sha256", "evaluation", "recipe")
    metadata: dict[str, Any] = {"training": {key: facts[key] for key in kept}}
    form = {"name": name, "metadata": json.dumps(metadata)}
    if tenant is not None:
        form["tenant"] = tenant
    print_verdict(upload(directory, form).json())
