"""`loraplex tenants` and `loraplex keys`: who may use a running server, and how much of it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.table import Column, Table

from server.cli.client import call
from server.cli.tables import print_table

tenants_app = typer.Typer(help="Tenants of a running server.", no_args_is_help=True)
keys_app = typer.Typer(help="API keys of a running server.", no_args_is_help=True)

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
QuotaFlag = Annotated[str | None, typer.Option(metavar="NUMBER|none", show_default=False)]
Name = Annotated[str, typer.Argument(help="The tenant's name.")]


@tenants_app.command("create")
def create_tenant(name: Name, as_json: JsonFlag = False) -> None:
    """Make a tenant."""
    tenant = call("POST", "/admin/tenants", json={"name": name}).json()
    print(json.dumps(tenant) if as_json else f"tenant {name} is made")


@tenants_app.command("list")
def list_tenants(as_json: JsonFlag = False) -> None:
    """List tenants."""
    tenants = _all_pages("/admin/tenants", {})
    if as_json:
        print(json.dumps(tenants))
        return
    table = Table("tenant", "adapters", "created")
    for tenant in tenants:
        table.add_row(tenant["name"], str(tenant["num_adapters"]), _time(tenant["created_at"]))
    print_table(table)


@tenants_app.command("show")
def show_tenant(name: Name, as_json: JsonFlag = False) -> None:
    """Show a tenant."""
    tenant = call("GET", f"/admin/tenants/{quote(name, safe='')}").json()
    if as_json:
        print(json.dumps(tenant))
        return
    for field, value in tenant.items():
        print(f"{field}: {value}")


@tenants_app.command("quota")
def set_quota(
    name: Name,
    requests_per_minute: QuotaFlag = None,
    tokens_per_minute: QuotaFlag = None,
    concurrent_requests: QuotaFlag = None,
    max_tokens: QuotaFlag = None,
    choices: QuotaFlag = None,
    adapters: QuotaFlag = None,
    adapter_bytes: QuotaFlag = None,
    weight: Annotated[int | None, typer.Option(help="Its share where tenants wait.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Change what a tenant may use; what isn't named stays as it is. 'none' is without limit."""
    given = {
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "concurrent_requests": concurrent_requests,
        "max_tokens": max_tokens,
        "choices": choices,
        "adapters": adapters,
        "adapter_bytes": adapter_bytes,
        "weight": weight,
    }
    path = f"/admin/tenants/{quote(name, safe='')}"
    quota = call("GET", path).json()["quota"]
    quota |= {k: None if v == "none" else v for k, v in given.items() if v is not None}
    quota = call("PUT", f"{path}/quota", json=quota).json()["quota"]
    if as_json:
        print(json.dumps(quota))
        return
    for field, value in quota.items():
        print(f"{field}: {'no limit' if value is None else value}")


@tenants_app.command("delete")
def delete_tenant(name: Name) -> None:
    """Forget a tenant without adapters, and revoke its keys."""
    call("DELETE", f"/admin/tenants/{quote(name, safe='')}")
    print(f"tenant {name} is deleted")


@keys_app.command("create")
def create_key(
    tenant: Annotated[str, typer.Argument(help="Whose key it is.")] = "default",
    scope: Annotated[
        list[str] | None,
        typer.Option(help="inference (the default), adapters or admin; may be repeated."),
    ] = None,
    label: Annotated[str, typer.Option(help="What it is for.")] = "",
    expires_days: Annotated[
        float | None, typer.Option(help="In how many days it ends; default: never.", min=0)
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a key, and print it: it can't be read again."""
    body: dict[str, Any] = {"tenant": tenant, "scopes": scope or ["inference"], "label": label}
    if expires_days is not None:
        body["expires_at"] = (datetime.now(UTC) + timedelta(days=expires_days)).isoformat()
    key = call("POST", "/admin/keys", json=body).json()
    print(json.dumps(key) if as_json else key["key"])


@keys_app.command("list")
def list_keys(
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """List keys, without their secrets."""
    keys = _all_pages("/admin/keys", {"tenant": tenant} if tenant else {})
    if as_json:
        print(json.dumps(keys))
        return
    table = Table(
        Column("id", no_wrap=True), "tenant", "scopes", "label", "last used", "ends", "revoked"
    )
    for key in keys:
        times = (key[f] for f in ("last_used_at", "expires_at", "revoked_at"))
        table.add_row(
            key["id"], key["tenant"], ", ".join(key["scopes"]), key["label"], *map(_time, times)
        )
    print_table(table)


@keys_app.command("revoke")
def revoke_key(key_id: Annotated[str, typer.Argument(help="The key's id, from the list.")]) -> None:
    """End a key, within a second on every server."""
    call("DELETE", f"/admin/keys/{quote(key_id, safe='')}")
    print(f"key {key_id} is revoked")


def _all_pages(path: str, query: dict[str, Any]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    after: str | None = ""
    while after is not None:
        page = call("GET", path, params={**query, "limit": 1000, "after": after}).json()
        rows += page["data"]
        after = page["next"]
    return rows


def _time(moment: str | None) -> str:
    return moment[:19] if moment else "-"
