"""The commands `loraplex adapters promote`, `canary` and `rollback`, which move `live`."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from server.api.words import targets_in_words
from server.cli.adapters.shared import JsonFlag, Name, TenantFlag, Version, path_of
from server.cli.client import call

PROMOTE_EXAMPLE = "Example: loraplex adapters promote smart-home 2"
CANARY_EXAMPLES = """Examples:

loraplex adapters canary smart-home 2 --weight 10

loraplex adapters canary smart-home 2 --weight 0
"""
ROLLBACK_EXAMPLE = "Example: loraplex adapters rollback smart-home"


def promote(
    name: Name, version: Version, tenant: TenantFlag = "", as_json: JsonFlag = False
) -> None:
    """Make a version live: every request for the bare name gets it from now on."""
    _point(tenant, name, [{"version": version}], {}, as_json)


def canary(
    name: Name,
    version: Version,
    weight: Annotated[
        int,
        typer.Option(
            min=0,
            max=100,
            help="The version's share of the requests in per cent. With 0 the canary ends.",
        ),
    ] = 10,
    tenant: TenantFlag = "",
    as_json: JsonFlag = False,
) -> None:
    """Give a version a share of the requests for the bare name. The live version gets the rest."""
    response = call("GET", f"{path_of(tenant, name)}/aliases/live")
    stable = next(t["version"] for t in reversed(response.json()["targets"]))
    targets = [{"version": version, "weight": weight}, {"version": stable, "weight": 100 - weight}]
    # The canary comes first, so that its conversations stay with it when its share grows.
    targets = [target for target in targets if target["weight"]]
    _point(tenant, name, targets, {"If-Match": response.headers["etag"]}, as_json)


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


def _point(
    tenant: str, name: str, targets: list[dict[str, int]], headers: dict[str, str], as_json: bool
) -> None:
    path = f"{path_of(tenant, name)}/aliases/live"
    alias: dict[str, Any] = call("PUT", path, json={"targets": targets}, headers=headers).json()
    if as_json:
        print(json.dumps(alias))
    else:
        print(f"{tenant}/{name}@live is {targets_in_words(alias['targets'])}")
