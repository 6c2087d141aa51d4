"""The command `loraplex adapters recheck`, which checks versions on the server's present base."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track

from server.cli.adapters.shared import JsonFlag, TenantFlag, path_of
from server.cli.client import all_pages, call
from server.cli.console import BAD_INPUT, FAILED, fail

EXAMPLES = """Examples:

loraplex adapters recheck smart-home

loraplex adapters recheck --all
"""


def recheck(
    name: Annotated[
        str | None, typer.Argument(help="The adapter's name, for example smart-home.")
    ] = None,
    of_all: Annotated[
        bool, typer.Option("--all", help="Check every adapter that the key may manage.")
    ] = False,
    tenant: TenantFlag = "",
    allow_base_mismatch: Annotated[
        bool,
        typer.Option(
            "--allow-base-mismatch",
            help="Accept adapters whose configuration names another base. All other checks stay.",
        ),
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Check versions that are incompatible with the server's base on that base.

    Those that pass are offered again. The command ends with code 1 if any stays incompatible.
    """
    if (name is None) is not of_all:
        fail("give an adapter's name, or --all", BAD_INPUT)
    incompatible = (
        all_pages("/admin/adapters", {"state": "incompatible"})
        if of_all
        else [{"tenant": tenant, "name": name}]
    )
    body, versions = {"allow_base_mismatch": allow_base_mismatch}, []
    console = Console(stderr=True)
    is_hidden = not console.is_terminal
    for adapter in track(
        incompatible, "checking", console=console, transient=True, disable=is_hidden
    ):
        path = path_of(adapter["tenant"], adapter["name"])
        versions += call("POST", f"{path}/recheck?wait=true", json=body).json()["data"]
    if as_json:
        print(json.dumps(versions))
    else:
        print_rechecked(versions)
    if any(version["state"] != "ready" for version in versions):
        raise typer.Exit(FAILED)


def print_rechecked(versions: list[dict[str, Any]]) -> None:
    """Print each version's state, with the reasons if it isn't offered."""
    for version in versions:
        print(f"{version['model']} is {version['state']}")
        for reason in version["reasons"]:
            print(f"  {reason['code']}: {reason['message']}")
    if not versions:
        print("no version is incompatible with the server's base")
