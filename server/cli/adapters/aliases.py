"""The commands `loraplex adapters promote` and `rollback`, which move `live`."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from server.api.words import targets_in_words
from server.cli.adapters.shared import JsonFlag, Name, TenantFlag, Version, path_of
from server.cli.client import call

PROMOTE_EXAMPLES = """Examples:

loraplex adapters promote smart-home 2

loraplex adapters promote smart-home 2 --warm
"""
ROLLBACK_EXAMPLE = "Example: loraplex adapters rollback smart-home"


def promote(
    name: Name,
    version: Version,
    warm: Annotated[
        bool,
        typer.Option(
            "--warm",
            help="Wait until every server that serves the adapter has the version in memory.",
        ),
    ] = False,
    warm_seconds: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            max=300,
            help="With --warm: the longest wait. Default: the server's LORAPLEX_WARM_SECONDS.",
        ),
    ] = None,
    tenant: TenantFlag = "",
    as_json: JsonFlag = False,
) -> None:
    """Make a version live: every request for the bare name gets it from now on.

    With --warm no request has to wait for a load of the new version after that.
    """
    if warm_seconds is not None and not warm:
        raise typer.BadParameter("--warm-seconds is how long --warm waits: give --warm, too")
    waiting = {"warm": True, "warm_seconds": warm_seconds} if warm else {}
    point(tenant, name, [{"version": version}], {}, as_json, waiting)


def rollback(name: Name, tenant: TenantFlag = "", as_json: JsonFlag = False) -> None:
    """Point live back to the version that it had before.

    A second rollback undoes the first one.
    """
    path = path_of(tenant, name)
    before = call("GET", f"{path}/aliases/live").json()["targets"]
    alias = call("POST", f"{path}/rollback").json()
    if as_json:
        print(json.dumps(alias))
        return
    moved = f"{targets_in_words(before)} → {targets_in_words(alias['targets'])}"
    print(f"{tenant}/{name}@live: {moved}")
    previous = alias["previous"]
    if previous and previous != alias["targets"]:
        print(f"a further rollback would go to {targets_in_words(previous)} again")
    else:
        print("there is nothing further to roll back to")


def point(
    tenant: str,
    name: str,
    targets: list[dict[str, int]],
    headers: dict[str, str],
    as_json: bool,
    waiting: dict[str, Any] | None = None,
) -> None:
    """Point `live` to versions and print where it is then. `waiting` has the fields for `warm`."""
    path, body = f"{path_of(tenant, name)}/aliases/live", {"targets": targets, **(waiting or {})}
    alias: dict[str, Any] = call("PUT", path, json=body, headers=headers).json()
    if as_json:
        print(json.dumps(alias))
        return
    print(f"{tenant}/{name}@live is {targets_in_words(alias['targets'])}")
    if "warm" in alias:
        print(_warmth_in_words(alias["warm"]))


def _warmth_in_words(warm: dict[str, Any]) -> str:
    """Return on how many servers the version was in memory, and which ones were late."""
    count = sum(server["state"] == "warm" for server in warm["servers"])
    said = f"in memory on {count} server{'' if count == 1 else 's'}"
    late = [
        f"{server['server']} ({server['state']})"
        for server in warm["servers"]
        if server["state"] in ("loading", "failed", "unheard")
    ]
    if late:
        said += f", not yet on {', '.join(late)}"
    return f"{said}, after {warm['waited_seconds']:.1f} s"
