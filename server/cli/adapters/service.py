"""The commands `loraplex adapters` for what serves: pins, suspension, sharing, retirement."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from server.cli.adapters.shared import (
    ForceFlag,
    Name,
    OptionalVersion,
    ReasonFlag,
    TenantFlag,
    Version,
    path_of,
)
from server.cli.client import call

PIN_EXAMPLES = """Examples:

loraplex adapters pin smart-home

loraplex adapters pin smart-home 2
"""
UNPIN_EXAMPLE = "Example: loraplex adapters unpin smart-home"
RETIRE_EXAMPLE = "Example: loraplex adapters retire smart-home 1"
SUSPEND_EXAMPLE = 'Example: loraplex adapters suspend smart-home --reason "under review"'
RESUME_EXAMPLE = "Example: loraplex adapters resume smart-home"
DELETE_EXAMPLE = "Example: loraplex adapters delete smart-home --force"
SHARE_EXAMPLES = """Examples:

loraplex adapters share smart-home --with acme --with globex

loraplex adapters share smart-home
"""


def pin(name: Name, version: OptionalVersion = None, tenant: TenantFlag = "") -> None:
    """Keep a version in a slot of the engine: it is loaded now, and after each restart."""
    _pin("PUT", tenant, name, version)


def unpin(name: Name, version: OptionalVersion = None, tenant: TenantFlag = "") -> None:
    """Unpin a version: it loses its slot again when others need it."""
    _pin("DELETE", tenant, name, version)


def retire(name: Name, version: Version, tenant: TenantFlag = "", force: ForceFlag = False) -> None:
    """Take a version out of service for good. Answers that have begun finish on it."""
    path = path_of(tenant, name)
    call("DELETE", f"{path}/versions/{version}", params={"force": str(force).lower()})
    print(f"{tenant}/{name}@{version} is retired")
    for alias in _without_a_way_back(call("GET", path).json()["aliases"], version):
        print(f"nothing is left to roll {tenant}/{name}@{alias} back to")


def suspend(name: Name, reason: ReasonFlag = "", tenant: TenantFlag = "") -> None:
    """Refuse requests for an adapter until it is resumed. Running answers finish."""
    call("PUT", f"{path_of(tenant, name)}/suspension", json={"reason": reason})
    print(f"{tenant}/{name} is suspended: its requests get a 503 until it is resumed")


def resume(name: Name, tenant: TenantFlag = "") -> None:
    """Answer requests for a suspended adapter again."""
    call("DELETE", f"{path_of(tenant, name)}/suspension")
    print(f"{tenant}/{name} is in service")


def delete(name: Name, tenant: TenantFlag = "", force: ForceFlag = False) -> None:
    """Retire all versions and delete the adapter. Its version numbers are not used again."""
    call("DELETE", path_of(tenant, name), params={"force": str(force).lower()})
    print(f"{tenant}/{name} is deleted")


def share(
    name: Name,
    with_: Annotated[
        list[str] | None,
        typer.Option(
            "--with", help="A tenant that may use the adapter. Repeat it for more tenants."
        ),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Let every tenant use the adapter.")
    ] = False,
    tenant: TenantFlag = "",
) -> None:
    """Set which other tenants may use an adapter. Without --with and --public, none may."""
    body = {"shared_with": with_ or [], "public": public}
    shared = call("PUT", f"{path_of(tenant, name)}/sharing", json=body).json()
    others = "everyone" if public else ", ".join(shared["shared_with"]) or "nobody"
    print(f"{tenant}/{name} is shared with {others}")


def _pin(method: str, tenant: str, name: str, version: int | None) -> None:
    if version is None:
        alias = call("GET", f"{path_of(tenant, name)}/aliases/live").json()
        version = next(target["version"] for target in reversed(alias["targets"]))
    call(method, f"{path_of(tenant, name)}/versions/{version}/pin")
    print(f"{tenant}/{name}@{version} is {'pinned' if method == 'PUT' else 'unpinned'}")


def _without_a_way_back(aliases: list[dict[str, Any]], version: int) -> list[str]:
    """Return the aliases that a rollback would have pointed to this version."""
    return [
        alias["alias"]
        for alias in aliases
        if any(target["version"] == version for target in alias["previous"] or [])
    ]
