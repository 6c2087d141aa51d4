"""`loraplex merge` and `combine`: adapters become a whole model, or one adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from server.cli.training import BaseFlag, NewDirectory, base_or_bundled, explained


def merge(
    adapter: Annotated[Path, typer.Argument(help="The adapter's directory.")],
    output: NewDirectory,
    base: BaseFlag = None,
    dtype: Annotated[str, typer.Option(help="bfloat16 or float32.")] = "bfloat16",
    over: Annotated[
        str,
        typer.Option(
            help="Which base: trained (what the adapter was trained over), original, or nf4."
        ),
    ] = "trained",
) -> None:
    """Merge an adapter into its base: a whole model, to serve with `loraplex serve --base OUTPUT`.

    It is compared with base and adapter before anything is kept.
    """
    from training.export.merge import merge_adapter

    with explained():
        parity = merge_adapter(adapter, base_or_bundled(base), output, dtype, over)
    print(f"merged model in {output}; against base and adapter as they were trained: {parity}")


def combine(
    output: NewDirectory,
    adapters: Annotated[
        list[str], typer.Argument(help="Directories of adapters, each with =WEIGHT if not 1.")
    ],
    base: BaseFlag = None,
    method: Annotated[
        str,
        typer.Option(
            help="cat: the exact weighted sum, ranks add up; svd: its best fit at --rank; ties; "
            "dare."
        ),
    ] = "cat",
    rank: Annotated[
        int | None, typer.Option(help="Rank for svd, ties, dare; default: the largest.", min=1)
    ] = None,
    density: Annotated[
        float, typer.Option(help="Share of each update that ties and dare keep.", min=0, max=1)
    ] = 0.5,
) -> None:
    """Combine adapters of one base into one, to register like any other."""
    from training.export.combine import combine_adapters

    with explained():
        pairs = [_weighted(text) for text in adapters]
        paths, weights = [path for path, _ in pairs], [weight for _, weight in pairs]
        error = combine_adapters(
            paths, weights, base_or_bundled(base), output, method, rank, density
        )
    print(f"adapter in {output}: {error:.2%} away from the weighted sum")


def _weighted(text: str) -> tuple[Path, float]:
    """`DIRECTORY` or `DIRECTORY=WEIGHT`; a directory of that whole name wins."""
    from training.errors import TrainingError

    path, _, weight = text.rpartition("=")
    if Path(text).is_dir() or not path:
        return Path(text), 1.0
    try:
        return Path(path), float(weight)
    except ValueError:
        raise TrainingError(f"{weight!r} is no weight: write {path}=0.5") from None
