"""Arguments, options and paths that the commands for adapters share."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

import typer

from server.cli.client import call


def _owner(context: typer.Context, tenant: str) -> str:
    """Return the named tenant, or the key's own if none is named."""
    if tenant or context.resilient_parsing:  # a shell completes a command
        return tenant
    return str(call("GET", "/admin/whoami").json()["tenant"])


JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
TenantFlag = Annotated[
    str,
    typer.Option(
        help="The tenant that owns the adapter. Without it, the key's own tenant.",
        callback=_owner,
        show_default=False,
    ),
]
ForceFlag = Annotated[
    bool,
    typer.Option(
        "--force",
        help="Do it even if the adapter is in service. Aliases no longer point to it.",
    ),
]
ReasonFlag = Annotated[str, typer.Option(help="Why. Clients read it in the error.")]
Name = Annotated[str, typer.Argument(help="The adapter's name, for example smart-home.")]
Version = Annotated[int, typer.Argument(help="The version's number, for example 2.")]
OptionalVersion = Annotated[
    int | None, typer.Argument(help="The version's number. By default the live version's.")
]


def path_of(tenant: str, name: str) -> str:
    """Return the path of an adapter in the admin API."""
    return f"/admin/adapters/{quote(tenant, safe='')}/{quote(name, safe='')}"
