"""The commands `loraplex merge` (adapter into base) and `combine` (adapters into one)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from server.cli.training.shared import (
    BaseFlag,
    NewDirectory,
    base_or_bundled,
    explained,
    refuse,
)

MERGE_EXAMPLE = "Example: loraplex merge my-adapter my-model --base DIRECTORY"
COMBINE_EXAMPLE = "Example: loraplex combine both tone facts=0.5 --method svd --rank 16"


def merge(
    adapter: Annotated[Path, typer.Argument(help="The directory of the adapter.")],
    output: NewDirectory,
    base: BaseFlag = None,
    dtype: Annotated[
        str, typer.Option(help="The type of the weights: bfloat16 or float32.")
    ] = "bfloat16",
    over: Annotated[
        str,
        typer.Option(
            help="The base that the adapter is merged into: trained (the base as in its training), "
            "original (the base as it is), or nf4 (rounded to NF4)."
        ),
    ] = "trained",
) -> None:
    """Merge an adapter into its base's weights. `loraplex serve --base OUTPUT` serves the result.

    The result is compared with base and adapter, and is kept only if it differs just by rounding.
    """
    from training.export.merge import merge_adapter

    with explained():
        parity = merge_adapter(adapter, base_or_bundled(base), output, dtype, over)
    print(f"merged model in {output}; against base and adapter as they were trained: {parity}")


def combine(
    output: NewDirectory,
    adapters: Annotated[
        list[str],
        typer.Argument(
            help="Directories of two or more adapters. DIRECTORY=0.5 gives one the weight 0.5."
        ),
    ],
    base: BaseFlag = None,
    method: Annotated[
        str,
        typer.Option(
            help="cat is the exact weighted sum, whose rank is the sum of the ranks. svd is its "
            "best fit at --rank. ties and dare drop small or random parts of each update first."
        ),
    ] = "cat",
    rank: Annotated[
        int | None,
        typer.Option(
            help="The rank for svd, ties and dare. By default the adapters' largest rank.", min=1
        ),
    ] = None,
    density: Annotated[
        float, typer.Option(help="The share of each update that ties and dare keep.", min=0, max=1)
    ] = 0.5,
) -> None:
    """Combine adapters of one base into one adapter, which is registered like any other."""
    from training.export.combine import combine_adapters

    with explained():
        pairs = [_weighted(text) for text in adapters]
        paths, weights = [path for path, _ in pairs], [weight for _, weight in pairs]
        error = combine_adapters(
            paths, weights, base_or_bundled(base), output, method, rank, density
        )
    print(f"adapter in {output}: {error:.2%} away from the weighted sum")


def _weighted(text: str) -> tuple[Path, float]:
    """Read `DIRECTORY` or `DIRECTORY=WEIGHT`. A directory that has the whole name wins."""
    path, _, weight = text.rpartition("=")
    if Path(text).is_dir() or not path:
        return Path(text), 1.0
    try:
        return Path(path), float(weight)
    except ValueError:
        refuse(f"{weight!r} isn't a weight: write {path}=0.5")
