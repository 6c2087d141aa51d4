"""The command `loraplex adapters compose`, which makes a version of others."""

from __future__ import annotations

import json
import math
from typing import Annotated, Any

import typer
from rich.console import Console

from adapters_registry.errors import InvalidName
from adapters_registry.names import check_name
from server.cli.adapters.fits import farthest
from server.cli.adapters.registration import print_verdict
from server.cli.adapters.shared import JsonFlag, Name, TenantFlag, path_of
from server.cli.client import call
from server.cli.console import BAD_INPUT, fail

EXAMPLES = """Examples:

loraplex adapters compose both style=0.7 domain@3=0.3

loraplex adapters compose both style=0.7 domain@3=0.3 --rank 16
"""


def compose(
    name: Name,
    parts: Annotated[
        list[str],
        typer.Argument(
            help="What is added: MODEL=WEIGHT, for example style=0.7 or acme/domain@3=0.3. A model "
            "without a weight has the weight 1."
        ),
    ],
    rank: Annotated[
        int | None,
        typer.Option(
            help="Make the best fit of this rank. Without it the sum is exact, and its rank is the "
            "sum of the ranks.",
            min=1,
        ),
    ] = None,
    tenant: TenantFlag = "",
    promote: Annotated[
        bool,
        typer.Option("--promote", help="Make the version live as soon as it is ready."),
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Make an adapter's next version: a weighted sum of versions that the server has.

    The server adds the stored weights. The result is checked like any other version.
    """
    try:
        check_name(name, "adapter")
    except InvalidName as error:
        fail(str(error))
    body = {"parts": [_part(text) for text in parts], "rank": rank, "promote": promote}
    with Console(stderr=True).status(f"composing {name}"):
        path = f"{path_of(tenant, name)}/compose?wait=true"
        version: dict[str, Any] = call("POST", path, json=body).json()
    if as_json:
        print(json.dumps(version))
        return
    print_verdict(version)
    print_composition(version)


def print_composition(version: dict[str, Any]) -> None:
    """Print the parts of a composition, its rank, and how far a fit is from the exact sum."""
    composed = version["metadata"]["composed"]
    terms = " + ".join(f"{part['weight']:g} x {part['model']}" for part in composed["parts"])
    print(f"{terms}, rank {version['rank']}")
    if composed["error"]:
        print(f"{composed['error']:.2%} away from the exact sum; {farthest(composed)}")
    if fields := composed.get("defaults_of_the_base"):
        print(f"the parts differ in {', '.join(fields)}: the base's are used")


def _part(text: str) -> dict[str, Any]:
    model, equals, weight = text.rpartition("=")
    if not equals:
        return {"model": text, "weight": 1.0}
    try:
        number = float(weight)
    except ValueError:
        number = math.nan
    if not model or not math.isfinite(number):
        fail(f"{text!r} is no part: write MODEL=WEIGHT, as in style=0.7", BAD_INPUT)
    return {"model": model, "weight": number}
