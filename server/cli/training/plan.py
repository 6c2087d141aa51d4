"""The command `loraplex plan`, which estimates memory, time and cost of training and serving."""

from __future__ import annotations

import json
from collections.abc import Container
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from server.cli.tables import print_table
from server.cli.training.shared import base_or_bundled, explained, refuse

if TYPE_CHECKING:
    from training.plan.memory import Shape
    from training.plan.planner import Advice, Estimate


EXAMPLE = """Examples:

loraplex plan --base DIRECTORY --memory-gb 24 --examples 5000 --batch-size 1

loraplex plan --adapters ./adapters --served --slots 16
"""


def plan(
    base: Annotated[
        Path | None,
        typer.Option(
            help="The directory of a model, or its config.json. By default the bundled base."
        ),
    ] = None,
    rank: Annotated[int, typer.Option(help="The rank of the adapter's matrices.", min=1)] = 16,
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="A module to adapt, such as q_proj. Repeat it for more; without it all linear "
            "modules are adapted."
        ),
    ] = None,
    length: Annotated[int, typer.Option(help="The length of a sequence, in tokens.", min=1)] = 512,
    batch_size: Annotated[
        int, typer.Option(help="How many sequences each step learns from.", min=1)
    ] = 16,
    accumulation: Annotated[
        int, typer.Option(help="Number of parts that a step is cut into, to save memory.", min=1)
    ] = 1,
    gradient_checkpointing: Annotated[
        bool,
        typer.Option(
            "--gradient-checkpointing",
            help="Compute activations twice instead of keeping them.",
        ),
    ] = False,
    memory_gb: Annotated[
        float | None, typer.Option(help="The memory of the machine or GPU, in GB (10^9 bytes).")
    ] = None,
    tflops: Annotated[
        float | None,
        typer.Option(
            help="The speed of training, in 10^12 operations per second. It is lower than in the "
            "data sheet."
        ),
    ] = None,
    price: Annotated[
        float | None, typer.Option(help="The price of an hour of it, in any currency.")
    ] = None,
    examples: Annotated[
        int | None, typer.Option(help="How many examples the data has.", min=1)
    ] = None,
    epochs: Annotated[
        float, typer.Option(help="How many times each example is learned.", min=0)
    ] = 3,
    task: Annotated[
        str,
        typer.Option(
            help="The kind of task: ordinary (style, format, extraction) or domain (a new field)."
        ),
    ] = "ordinary",
    max_gap: Annotated[
        float, typer.Option(help="How far below full fine-tuning the quality may be, from 0 to 1.")
    ] = 0.03,
    slots: Annotated[int, typer.Option(help="How many adapter slots a server has.", min=1)] = 4,
    adapters: Annotated[
        list[Path] | None,
        typer.Option(
            help="An adapter's directory, or a folder of such: say which --max-lora-rank pays for "
            "them. Repeat it for more."
        ),
    ] = None,
    served: Annotated[
        bool,
        typer.Option("--served", help="Count the newest versions on the server, too."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
) -> None:
    """Estimate the memory, time and cost of full fine-tuning, LoRA and QLoRA, and of serving.

    Only the base's configuration is read. The figures count live tensors. A process takes more, for
    its libraries and for gaps between tensors.
    """
    from training.data.recipe import make_recipe
    from training.plan.memory import Shape
    from training.plan.planner import GAPS, Hardware, advise, estimate_all

    with explained():
        if task not in GAPS:
            raise typer.BadParameter(f"--task must be {' or '.join(GAPS)}, not {task}")
        shape = Shape.of(_config(base))
        recipe = make_recipe(
            {
                "rank": rank,
                "targets": target or None,
                "batch_size": batch_size,
                "accumulation": accumulation,
                "gradient_checkpointing": gradient_checkpointing,
            }
        )
        memory = None if memory_gb is None else int(memory_gb * 1e9)
        hardware = Hardware(memory, tflops and tflops * 1e12, price)
        num_tokens = round((examples or 0) * epochs * length)
        estimates = estimate_all(shape, recipe, length, num_tokens, hardware)
        advice = advise(estimates, memory, examples, task, max_gap)
        serving = _serving(shape, rank, slots, memory)
        limits = _limits(shape, adapters or [], served, slots)
    if as_json:
        facts = {
            "num_parameters": shape.num_parameters,
            "training": [asdict(e) | {"peak": e.memory.peak} for e in estimates],
            "advice": asdict(advice),
            "serving": serving,
            "rank_limits": limits,
        }
        print(json.dumps(facts))
        return
    _print_training(shape, estimates, advice)
    _print_serving(serving)
    if limits is not None:
        _print_limits(limits)


def _config(base: Path | None) -> dict[str, Any]:
    base = base_or_bundled(base)
    file = base / "config.json" if base.is_dir() else base
    try:
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        refuse(f"can't read the configuration {file}: {error}")
    return config


def _serving(shape: Shape, rank: int, slots: int, memory: int | None) -> dict[str, Any]:
    """Return the bytes of a slot at the engine's limit for this rank, and the context that fits."""
    from adapters_registry.check.ranks import RANK_LIMITS, limit_for
    from training.plan.planner import slots_and_context

    limit = limit_for(rank) or RANK_LIMITS[-1]
    weights = {
        "bfloat16": 2 * shape.num_parameters,
        "4-bit": shape.num_linear * 9 // 16 + 2 * shape.num_other,
    }
    fits = {
        name: memory and slots_and_context(shape, memory, limit, slots, size)
        for name, size in weights.items()
    }
    return {
        "max_lora_rank": limit,
        "slots": slots,
        "slot_bytes": shape.slot_bytes(limit),
        "weight_bytes": weights,
        "kv_bytes_per_token": shape.kv_bytes_per_token,
        "kv_tokens_that_fit": fits,
    }


def _limits(shape: Shape, folders: list[Path], served: bool, slots: int) -> dict[str, Any] | None:
    """Return what each limit of ranks takes and lets in, and the choice. None without adapters."""
    from training.plan.rank_limits import choose_limit, digests_of, plan_limits, ranks_of

    ranks = ranks_of(folders)
    if served:
        ranks |= _served_ranks(besides=digests_of(ranks))
    if not ranks:
        if served:
            refuse("the server has no adapter whose rank is known")
        return None
    plans = plan_limits(shape, list(ranks.values()), slots)
    chosen = choose_limit(plans)
    over = sorted(name for name, rank in ranks.items() if rank > chosen.limit)
    return {
        "num_adapters": len(ranks),
        "slots": slots,
        "limits": [asdict(plan) for plan in plans],
        "choice": chosen.limit,
        "over_the_choice": over,
    }


def _served_ranks(besides: Container[str]) -> dict[str, int]:
    """Return the rank of the newest version of each adapter that the key may manage.

    Contents whose digest is in `besides` are left out.
    """
    from server.cli.adapters.shared import path_of
    from server.cli.client import all_pages, call

    ranks = {}
    for adapter in all_pages("/admin/adapters", {}):
        shown = call("GET", path_of(adapter["tenant"], adapter["name"])).json()
        known = [v for v in shown["versions"] if v["rank"] and v["state"] in _USABLE]
        if known and _original(known[-1])["digest"] not in besides:
            ranks[known[-1]["model"]] = int(_original(known[-1])["rank"])
    return ranks


_USABLE = ("ready", "incompatible")
"""The states of versions whose rank counts."""


def _original(version: dict[str, Any]) -> dict[str, Any]:
    """Return the rank and the digest of a version, or of the version whose best fit it is."""
    original = version["metadata"].get("fitted", {}).get("of", {})
    return {name: original.get(name) or version[name] for name in ("rank", "digest")}


def _print_limits(limits: dict[str, Any]) -> None:
    slots, count = limits["slots"], limits["num_adapters"]
    heads = "--max-lora-rank", "MB a slot", f"MB for {slots} slots", "adapters that fit", "share"
    table = Table(*heads, title=f"Limits of ranks for {count} adapters")
    for plan in limits["limits"]:
        table.add_row(
            str(plan["limit"]),
            f"{plan['slot_bytes'] / 1e6:.1f}",
            f"{plan['slots_bytes'] / 1e6:.0f}",
            str(plan["num_fitting"]),
            f"{plan['share']:.0%}",
        )
    print_table(table)
    console = Console()
    console.print(f"choose: --max-lora-rank {limits['choice']}", soft_wrap=True, highlight=False)
    if over := limits["over_the_choice"]:
        console.print(
            f"  {len(over)} would not fit, such as {over[0]}: register them with --fit-rank, which "
            "serves their best fit and says how far it is from them",
            soft_wrap=True,
            highlight=False,
        )


def _print_training(shape: Shape, estimates: list[Estimate], advice: Advice) -> None:
    parts = ("weights", "quantisation", "gradients", "optimiser", "activations")
    table = Table(
        "GB", *(e.method for e in estimates), title=f"{shape.num_parameters:,} parameters"
    )
    table.add_row("trained parameters", *(f"{e.num_trainable:,}" for e in estimates))
    for part in (*parts, "peak", "artefact"):
        table.add_row(part, *(f"{getattr(e.memory, part) / 1e9:.3f}" for e in estimates))
    if any(e.seconds for e in estimates):
        table.add_row("hours", *(f"{(e.seconds or 0) / 3600:.2f}" for e in estimates))
    if any(e.cost is not None for e in estimates):
        table.add_row("cost", *(f"{e.cost or 0:.2f}" for e in estimates))
    console = Console()
    print_table(table)
    console.print(f"choose: {advice.method or 'nothing fits'}")
    for reason in advice.reasons:
        console.print(f"  {reason}", soft_wrap=True)


def _print_serving(serving: dict[str, Any]) -> None:
    console = Console()
    slot_mb, token_kb = serving["slot_bytes"] / 1e6, serving["kv_bytes_per_token"] / 1e3
    console.print(
        f"serving: a slot takes {slot_mb:.1f} MB at --max-lora-rank {serving['max_lora_rank']}, "
        f"a token of KV cache {token_kb:.1f} kB",
        soft_wrap=True,
    )
    for name, tokens in serving["kv_tokens_that_fit"].items():
        size = serving["weight_bytes"][name] / 1e9
        room = "" if tokens is None else f", {tokens:,} tokens of KV cache fit beside its slots"
        console.print(f"  {name}: weights {size:.2f} GB{room}", soft_wrap=True)
