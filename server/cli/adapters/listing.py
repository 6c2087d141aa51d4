"""`loraplex adapters list` and `show`."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.table import Table

from server.api.words import signer_in_words
from server.cli.adapters.shared import JsonFlag, Name, TenantFlag, path_of
from server.cli.client import all_pages, call
from server.cli.tables import local_time, print_table

LIST_EXAMPLES = """Examples:

loraplex adapters list

loraplex adapters list --state rejected --sort -created
"""
SHOW_EXAMPLE = "Example: loraplex adapters show smart-home"


def list_adapters(
    tenant: Annotated[str | None, typer.Option(help="List only this tenant's adapters.")] = None,
    search: Annotated[
        str | None, typer.Option(help="List only adapters whose tenant/name has this text.")
    ] = None,
    state: Annotated[
        str | None,
        typer.Option(
            help="List only adapters with a version that is pending, checking, ready, rejected, "
            "incompatible or retired."
        ),
    ] = None,
    sort: Annotated[
        str,
        typer.Option(
            help="Sort by name, created, size or versions. With a '-' in front: descending."
        ),
    ] = "name",
    as_json: JsonFlag = False,
) -> None:
    """List the adapters with their live, pinned and newest versions.

    Rank and size are those of the live version. Without one they are those of the newest version
    that is ready, whose number stands beside them.
    """
    filters = {"tenant": tenant, "search": search, "state": state}
    query = {"sort": sort} | {key: value for key, value in filters.items() if value is not None}
    adapters = all_pages("/admin/adapters", query)
    if as_json:
        print(json.dumps(adapters))
        return
    heads = "tenant", "name", "live", "pinned", "newest", "versions", "rank", "size", "reason"
    table = Table(*heads)
    for adapter in adapters:
        newest, of_version = adapter["newest"], _of_version(adapter)
        table.add_row(
            adapter["tenant"],
            adapter["name"],
            _live(adapter),
            ", ".join(map(str, adapter["pinned"])) or "-",
            f"{newest['version']} {newest['state']}" if newest else "-",
            str(adapter["num_versions"]),
            str(adapter["rank"] or "-") + of_version,
            _size(adapter["size_bytes"]) + of_version,
            _remark(adapter),
        )
    print_table(table)


def _remark(adapter: dict[str, Any]) -> str:
    """Return whether an adapter is suspended, and why a version is not served."""
    newest, suspended = adapter["newest"], adapter["suspended"]
    reason = (newest and newest["reason"]) or adapter["reason"] or ""
    if suspended is None:
        return reason
    remark = "suspended" + (f": {suspended['reason']}" if suspended["reason"] else "")
    return f"{remark}; {reason}" if reason else remark


VERSIONS_A_PAGE = 1000


def show(name: Name, tenant: TenantFlag = "", as_json: JsonFlag = False) -> None:
    """Show an adapter with all its versions, and the gate's remarks about them."""
    adapter = with_all_versions(path_of(tenant, name))
    if as_json:
        print(json.dumps(adapter))
        return
    if adapter["suspended"]:
        print(f"{tenant}/{name} is {_remark(adapter)}")
    heads = "version", "state", "aliases", "pinned", "rank", "size", "digest", "created", "remarks"
    table = Table(*heads)
    for version in adapter["versions"]:
        aliases = [
            alias["alias"] + (f" {target['weight']} %" if target["weight"] < 100 else "")
            for alias in adapter["aliases"]
            for target in alias["targets"]
            if target["version"] == version["version"]
        ]
        table.add_row(
            str(version["version"]),
            version["state"],
            ", ".join(sorted(aliases)),
            "yes" if version["version"] in adapter["pinned"] else "",
            str(version["rank"] or "-"),
            _size(version["size_bytes"]),
            version["digest"][:12],
            local_time(version["created_at"]),
            "\n".join(remarks_of(version)),
        )
    print_table(table)


def with_all_versions(path: str) -> dict[str, Any]:
    """Return an adapter with the versions of all its pages, the oldest first."""
    query = {"limit": VERSIONS_A_PAGE}
    adapter: dict[str, Any] = call("GET", path, params=query).json()
    while adapter["next"] is not None:
        older = call("GET", path, params={**query, "before": adapter["next"]}).json()
        adapter["versions"] = older["versions"] + adapter["versions"]
        adapter["next"] = older["next"]
    return adapter


def remarks_of(version: dict[str, Any]) -> list[str]:
    """Return why a version is not served, who has signed it, and the gate's warnings about it."""
    signer = signer_in_words(version.get("metadata", {}))
    reasons = [reason["message"] for reason in version["reasons"]]
    return [*reasons, *([signer] if signer else []), *warnings_of(version)]


def warnings_of(version: dict[str, Any]) -> list[str]:
    """Return the gate's warnings about a version, and what the version replaces of the base."""
    warnings: list[str] = version.get("metadata", {}).get("checked", {}).get("warnings", [])
    return warnings


def _live(adapter: dict[str, Any]) -> str:
    targets: list[dict[str, int]] = next(
        (a["targets"] for a in adapter["aliases"] if a["alias"] == "live"), []
    )
    is_split = len(targets) > 1
    shown = []
    for target in targets:
        remarks = [f"{target['weight']} %"] if is_split else []
        if target["version"] in adapter["incompatible"]:
            remarks.append("incompatible")
        remark = f" ({', '.join(remarks)})" if remarks else ""
        shown.append(f"{target['version']}{remark}")
    return ", ".join(shown) or "-"


def _of_version(adapter: dict[str, Any]) -> str:
    """Return the version that is described, if it isn't the live one."""
    number = adapter["described"]
    return f" (@{number})" if number not in (None, adapter["live"]) else ""


def _size(size_bytes: int | None) -> str:
    return "-" if size_bytes is None else f"{size_bytes / 1e6:.1f} MB"
