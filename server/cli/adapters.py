"""`loraplex adapters`: what a person does to a running server's registry."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table

from adapters_registry.content.adapter_files import ADAPTER_FILES
from server.cli.client import call
from server.cli.tables import print_table

app = typer.Typer(
    help="Register, list, promote, roll back and retire adapters of a running server.",
    no_args_is_help=True,
)


def _owner(context: typer.Context, tenant: str) -> str:
    """The tenant that was named, or else the key's own."""
    if tenant or context.resilient_parsing:  # a shell completes a command
        return tenant
    return str(call("GET", "/admin/whoami").json()["tenant"])


JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
TenantFlag = Annotated[
    str,
    typer.Option(
        help="Whose adapter it is; default: the key's own tenant.",
        callback=_owner,
        show_default=False,
    ),
]
ForceFlag = Annotated[bool, typer.Option("--force", help="Even if aliases point to it.")]
Name = Annotated[str, typer.Argument(help="The adapter's name.")]
Version = Annotated[int, typer.Argument(help="The version's number.")]
PinnedVersion = Annotated[
    int | None, typer.Argument(help="The version's number; default: the live one's.")
]


@app.command()
def register(
    name: Name,
    source: Annotated[
        str,
        typer.Argument(help="A directory here, which is uploaded, or a source for the server."),
    ],
    tenant: TenantFlag = "",
    promote: Annotated[bool, typer.Option("--promote", help="Make it live when ready.")] = False,
    allow_base_mismatch: Annotated[
        bool, typer.Option("--allow-base-mismatch", help="Its config may name another base.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Register a directory as the adapter's next version, and wait for the verdict."""
    flags = {"promote": promote, "allow_base_mismatch": allow_base_mismatch}
    fields: dict[str, Any] = {"name": name, "tenant": tenant}
    if Path(source).is_dir():
        form = fields | {flag: str(value).lower() for flag, value in flags.items()}
        response = upload(Path(source), form)
    else:
        with Console(stderr=True).status(f"registering {name}"):
            body = {**fields, **flags, "source": source}
            response = call("POST", "/admin/adapters?wait=true", json=body)
    version = response.json()
    if as_json:
        print(json.dumps(version))
    else:
        print_verdict(version)


def print_verdict(version: dict[str, Any]) -> None:
    """Say how a registration ended, and what the gate warns of."""
    print(f"{version['model']} is {version['state']} (sha256:{version['digest'][:12]})")
    for warning in version.get("metadata", {}).get("checked", {}).get("warnings", []):
        print(f"warning: {warning}")


def upload(directory: Path, form: dict[str, Any]) -> Any:
    """Register an adapter's two files with these form fields, and wait for the verdict."""
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), DownloadColumn()
    console = Console(stderr=True)
    with ExitStack() as open_files, Progress(*columns, console=console) as progress:
        files = [
            ("files", (name, open_files.enter_context(progress.open(path, "rb", description=name))))
            for name in ADAPTER_FILES
            if (path := directory / name).is_file()
        ]
        # An empty part keeps the body multipart when both files are missing.
        return call(
            "POST", "/admin/adapters?wait=true", data=form, files=files or [("none", ("none", b""))]
        )


@app.command("list")
def list_adapters(
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's.")] = None,
    search: Annotated[str | None, typer.Option(help="Part of tenant/name.")] = None,
    state: Annotated[str | None, typer.Option(help="With a version in this state.")] = None,
    sort: Annotated[
        str, typer.Option(help="name, created, size, versions; with '-' descending.")
    ] = "name",
    as_json: JsonFlag = False,
) -> None:
    """List adapters."""
    filters = {"tenant": tenant, "search": search, "state": state}
    query: dict[str, Any] = {"sort": sort, "limit": 1000}
    query |= {key: value for key, value in filters.items() if value is not None}
    adapters: list[dict[str, Any]] = []
    after: str | None = ""
    while after is not None:
        page = call("GET", "/admin/adapters", params=query | {"after": after}).json()
        adapters += page["data"]
        after = page["next"]
    if as_json:
        print(json.dumps(adapters))
        return
    table = Table("tenant", "name", "live", "versions", "rank", "size")
    for adapter in adapters:
        table.add_row(
            adapter["tenant"],
            adapter["name"],
            _live(adapter),
            str(adapter["num_versions"]),
            str(adapter["rank"] or "-"),
            _size(adapter["size_bytes"]),
        )
    print_table(table)


@app.command()
def show(name: Name, tenant: TenantFlag = "", as_json: JsonFlag = False) -> None:
    """Show an adapter with all its versions."""
    adapter = call("GET", _path(tenant, name)).json()
    if as_json:
        print(json.dumps(adapter))
        return
    table = Table("version", "state", "aliases", "rank", "size", "digest", "created", "reasons")
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
            str(version["rank"] or "-"),
            _size(version["size_bytes"]),
            version["digest"][:12],
            version["created_at"][:19],
            "\n".join(reason["message"] for reason in version["reasons"]),
        )
    print_table(table)


@app.command()
def promote(
    name: Name, version: Version, tenant: TenantFlag = "", as_json: JsonFlag = False
) -> None:
    """Make a version live for every request from now on."""
    _point(tenant, name, [{"version": version}], {}, as_json)


@app.command()
def canary(
    name: Name,
    version: Version,
    weight: Annotated[
        int, typer.Option(min=0, max=100, help="Its share of requests in per cent; 0 ends it.")
    ] = 10,
    tenant: TenantFlag = "",
    as_json: JsonFlag = False,
) -> None:
    """Give a version a share of the requests for the bare name; the live version has the rest."""
    response = call("GET", f"{_path(tenant, name)}/aliases/live")
    stable = next(t["version"] for t in reversed(response.json()["targets"]))
    targets = [{"version": version, "weight": weight}, {"version": stable, "weight": 100 - weight}]
    # The canary comes first: a conversation that it has taken stays with it as its share grows.
    targets = [target for target in targets if target["weight"]]
    _point(tenant, name, targets, {"If-Match": response.headers["etag"]}, as_json)


@app.command()
def rollback(name: Name, tenant: TenantFlag = "", as_json: JsonFlag = False) -> None:
    """Point live back to the version it had before."""
    alias = call("POST", f"{_path(tenant, name)}/rollback").json()
    _print_alias(f"{tenant}/{name}", alias, as_json)


@app.command()
def pin(name: Name, version: PinnedVersion = None, tenant: TenantFlag = "") -> None:
    """Keep a version in a slot of the engine."""
    _pin("PUT", tenant, name, version)


@app.command()
def unpin(name: Name, version: PinnedVersion = None, tenant: TenantFlag = "") -> None:
    """Let a version make room again."""
    _pin("DELETE", tenant, name, version)


@app.command()
def retire(name: Name, version: Version, tenant: TenantFlag = "", force: ForceFlag = False) -> None:
    """Take a version out of service, for good."""
    params = {"force": str(force).lower()}
    call("DELETE", f"{_path(tenant, name)}/versions/{version}", params=params)
    print(f"{tenant}/{name}@{version} is retired")


@app.command()
def delete(name: Name, tenant: TenantFlag = "", force: ForceFlag = False) -> None:
    """Retire every version and forget the adapter."""
    call("DELETE", _path(tenant, name), params={"force": str(force).lower()})
    print(f"{tenant}/{name} is deleted")


@app.command()
def share(
    name: Name,
    with_: Annotated[
        list[str] | None, typer.Option("--with", help="A tenant that may use it; repeatable.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Every tenant may use it.")] = False,
    tenant: TenantFlag = "",
) -> None:
    """Say which other tenants may use an adapter; without any, none may any more."""
    body = {"shared_with": with_ or [], "public": public}
    shared = call("PUT", f"{_path(tenant, name)}/sharing", json=body).json()
    others = "everyone" if public else ", ".join(shared["shared_with"]) or "nobody"
    print(f"{tenant}/{name} is shared with {others}")


def _pin(method: str, tenant: str, name: str, version: int | None) -> None:
    if version is None:
        alias = call("GET", f"{_path(tenant, name)}/aliases/live").json()
        version = next(target["version"] for target in reversed(alias["targets"]))
    call(method, f"{_path(tenant, name)}/versions/{version}/pin")
    print(f"{tenant}/{name}@{version} is {'pinned' if method == 'PUT' else 'unpinned'}")


def _point(
    tenant: str, name: str, targets: list[dict[str, int]], headers: dict[str, str], as_json: bool
) -> None:
    path = f"{_path(tenant, name)}/aliases/live"
    alias = call("PUT", path, json={"targets": targets}, headers=headers).json()
    _print_alias(f"{tenant}/{name}", alias, as_json)


def _print_alias(adapter: str, alias: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(alias))
        return
    targets = ", ".join(f"{t['weight']} % @{t['version']}" for t in alias["targets"])
    print(f"{adapter}@{alias['alias']} is {targets}")


def _live(adapter: dict[str, Any]) -> str:
    targets: list[dict[str, int]] = next(
        (a["targets"] for a in adapter["aliases"] if a["alias"] == "live"), []
    )
    if len(targets) == 1:
        return str(targets[0]["version"])
    return ", ".join(f"{t['version']} ({t['weight']} %)" for t in targets) or "-"


def _path(tenant: str, name: str) -> str:
    return f"/admin/adapters/{quote(tenant, safe='')}/{quote(name, safe='')}"


def _size(size_bytes: int | None) -> str:
    return "-" if size_bytes is None else f"{size_bytes / 1e6:.1f} MB"
