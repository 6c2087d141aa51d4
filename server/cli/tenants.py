"""The commands `loraplex tenants` and `loraplex keys`, which manage tenants, quotas and keys."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.table import Column, Table

from server.cli.client import all_pages, call
from server.cli.commands import Commands
from server.cli.console import say
from server.cli.policies import EXAMPLES as POLICY_EXAMPLES
from server.cli.policies import set_policy
from server.cli.tables import local_time, print_table

tenants_app = Commands(
    help="Create, list and delete tenants of a running server, and set their quotas.",
    no_args_is_help=True,
)
keys_app = Commands(
    help="Create, list, rotate and revoke API keys of a running server.", no_args_is_help=True
)

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Name = Annotated[str, typer.Argument(help="The tenant's name, for example acme.")]
KeyId = Annotated[str, typer.Argument(help="The key's id, as the list shows it.")]

QUOTA_EXAMPLES = """Examples:

loraplex tenants quota acme --requests-per-minute 60 --tokens-per-minute 100000

loraplex tenants quota acme --max-tokens none --weight 2

loraplex tenants quota acme --service-tiers flex,priority
"""
KEY_EXAMPLES = """Examples:

loraplex keys create acme --label "the website"

loraplex keys create acme --scope inference --scope adapters --expires-days 90
"""
ROTATE_EXAMPLES = """Examples:

loraplex keys rotate 3f9c0a1b2d4e

loraplex keys rotate 3f9c0a1b2d4e --overlap-hours 168 --expires-days 90
"""


def _quota(help: str) -> Any:
    return typer.Option(metavar="NUMBER|none", show_default=False, help=help)


@tenants_app.command("create", epilog="Example: loraplex tenants create acme")
def create_tenant(name: Name, as_json: JsonFlag = False) -> None:
    """Create a tenant. It has no limits until `loraplex tenants quota` sets some."""
    tenant = call("POST", "/admin/tenants", json={"name": name}).json()
    print(json.dumps(tenant) if as_json else f"tenant {name} is created")


@tenants_app.command("list", epilog="Example: loraplex tenants list --json")
def list_tenants(as_json: JsonFlag = False) -> None:
    """List the tenants with their numbers of adapters."""
    tenants = all_pages("/admin/tenants", {})
    if as_json:
        print(json.dumps(tenants))
        return
    table = Table("tenant", "adapters", "created", "suspended")
    for tenant in tenants:
        suspended = tenant["suspended"]
        table.add_row(
            tenant["name"],
            str(tenant["num_adapters"]),
            local_time(tenant["created_at"]),
            (suspended["reason"] or "yes") if suspended else "-",
        )
    print_table(table)


@tenants_app.command("show", epilog="Example: loraplex tenants show acme")
def show_tenant(name: Name, as_json: JsonFlag = False) -> None:
    """Show a tenant with its quota."""
    tenant = call("GET", f"/admin/tenants/{quote(name, safe='')}").json()
    if as_json:
        print(json.dumps(tenant))
        return
    for field, value in tenant.items():
        print(f"{field}: {value}")


@tenants_app.command("quota", epilog=QUOTA_EXAMPLES)
def set_quota(
    name: Name,
    requests_per_minute: Annotated[
        str | None, _quota("How many requests the tenant may send in a minute, on each server.")
    ] = None,
    tokens_per_minute: Annotated[
        str | None,
        _quota("How many tokens it may use in a minute, on each server: prompts and answers."),
    ] = None,
    concurrent_requests: Annotated[
        str | None, _quota("How many of its requests may run at a time, on each server.")
    ] = None,
    max_tokens: Annotated[
        str | None,
        _quota("The longest answer to one request, in tokens. All choices of it share them."),
    ] = None,
    choices: Annotated[
        str | None, _quota("How many answers one request may ask for: n, times its prompts.")
    ] = None,
    adapters: Annotated[str | None, _quota("How many adapters the tenant may have.")] = None,
    adapter_bytes: Annotated[
        str | None, _quota("How many bytes the files of its versions may have together.")
    ] = None,
    versions: Annotated[
        str | None, _quota("How many of its versions may have their files kept.")
    ] = None,
    registrations_per_minute: Annotated[
        str | None, _quota("How many versions it may register in a minute, on all servers.")
    ] = None,
    compositions: Annotated[
        int | None,
        typer.Option(
            help="How many compositions that its requests name are kept at a time. 0 turns them "
            "off.",
            min=0,
        ),
    ] = None,
    weight: Annotated[
        int | None,
        typer.Option(
            help="The tenant's share while tenants wait: with twice the weight it gets twice the "
            "tokens."
        ),
    ] = None,
    service_tiers: Annotated[
        str | None,
        typer.Option(
            metavar="TIERS|none",
            show_default=False,
            help="The service tiers that its requests may ask for besides the default one: flex, "
            "priority, or both with a comma.",
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Change a tenant's limits. Limits that aren't named stay; 'none' removes a limit."""
    given = {
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "concurrent_requests": concurrent_requests,
        "max_tokens": max_tokens,
        "choices": choices,
        "adapters": adapters,
        "adapter_bytes": adapter_bytes,
        "versions": versions,
        "registrations_per_minute": registrations_per_minute,
        "compositions": compositions,
        "weight": weight,
    }
    path = f"/admin/tenants/{quote(name, safe='')}"
    quota = call("GET", path).json()["quota"]
    quota |= {k: None if v == "none" else v for k, v in given.items() if v is not None}
    if service_tiers is not None:
        named = [] if service_tiers == "none" else service_tiers.split(",")
        quota["service_tiers"] = [name.strip() for name in named]
    quota = call("PUT", f"{path}/quota", json=quota).json()["quota"]
    if as_json:
        print(json.dumps(quota))
        return
    for field, value in quota.items():
        text = ", ".join(value) or "none" if isinstance(value, list) else value
        print(f"{field}: {'no limit' if value is None else text}")


tenants_app.command("policy", epilog=POLICY_EXAMPLES)(set_policy)


@tenants_app.command("delete", epilog="Example: loraplex tenants delete acme")
def delete_tenant(name: Name) -> None:
    """Delete a tenant and revoke its keys. Delete its adapters before."""
    call("DELETE", f"/admin/tenants/{quote(name, safe='')}")
    print(f"tenant {name} is deleted")


@tenants_app.command("suspend", epilog='Example: loraplex tenants suspend acme --reason "unpaid"')
def suspend_tenant(
    name: Name, reason: Annotated[str, typer.Option(help="Why. The tenant reads it.")] = ""
) -> None:
    """Refuse a tenant's requests, and all for its adapters. Running answers finish."""
    path = f"/admin/tenants/{quote(name, safe='')}/suspension"
    call("PUT", path, json={"reason": reason})
    print(f"tenant {name} is suspended: its requests get a 503 until it is resumed")


@tenants_app.command("resume", epilog="Example: loraplex tenants resume acme")
def resume_tenant(name: Name) -> None:
    """Answer the requests of a suspended tenant again."""
    call("DELETE", f"/admin/tenants/{quote(name, safe='')}/suspension")
    print(f"tenant {name} is in service")


@keys_app.command("create", epilog=KEY_EXAMPLES)
def create_key(
    tenant: Annotated[str, typer.Argument(help="The tenant that the key belongs to.")] = "default",
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="What the key may do: inference (the default) sends requests, adapters manages "
            "the tenant's own adapters, admin does everything for everyone. Repeat it for more."
        ),
    ] = None,
    label: Annotated[
        str, typer.Option(help="The purpose of the key. The audit trail shows it.")
    ] = "",
    expires_days: Annotated[
        float | None,
        typer.Option(help="After how many days the key ends. By default never.", min=0),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Create a key and print it. Keep it: the server can't show it again."""
    body: dict[str, Any] = {"tenant": tenant, "scopes": scope or ["inference"], "label": label}
    if expires_days is not None:
        body["expires_at"] = (datetime.now(UTC) + timedelta(days=expires_days)).isoformat()
    key = call("POST", "/admin/keys", json=body).json()
    print(json.dumps(key) if as_json else key["key"])
    if expires_days is None and key["expires_at"]:
        say(f"the key ends at {local_time(key['expires_at'])}: no key may live longer here")


@keys_app.command("rotate", epilog=ROTATE_EXAMPLES)
def rotate_key(
    key_id: KeyId,
    overlap_hours: Annotated[
        float,
        typer.Option(help="For how many hours the old key still works.", min=0, max=720),
    ] = 24,
    expires_days: Annotated[
        float | None,
        typer.Option(
            help="After how many days the new key ends. By default it lives as long as the old one "
            "was to live.",
            min=0,
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Replace a key by a new one with its tenant, scopes and label, and print the new one.

    Both keys work for the time of the overlap. Then the old one ends.
    """
    body: dict[str, Any] = {"overlap_seconds": round(overlap_hours * 3600)}
    if expires_days is not None:
        body["expires_at"] = (datetime.now(UTC) + timedelta(days=expires_days)).isoformat()
    key = call("POST", f"/admin/keys/{quote(key_id, safe='')}/rotate", json=body).json()
    print(json.dumps(key) if as_json else key["key"])
    if not as_json:
        end = f"ends at {local_time(key['expires_at'])}" if key["expires_at"] else "has no end"
        say(f"{key_id} works until {local_time(key['replaced_until'])}; {key['id']} {end}")


@keys_app.command("list", epilog="Example: loraplex keys list --tenant acme")
def list_keys(
    tenant: Annotated[str | None, typer.Option(help="List only this tenant's keys.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """List the keys, without their secrets."""
    keys = all_pages("/admin/keys", {"tenant": tenant} if tenant else {})
    if as_json:
        print(json.dumps(keys))
        return
    table = Table(
        *(Column("id", no_wrap=True), "tenant", "scopes", "label", "last used", "ends", "revoked"),
        "replaced by",
    )
    for key in keys:
        times = (key[f] for f in ("last_used_at", "expires_at", "revoked_at"))
        table.add_row(
            key["id"],
            key["tenant"],
            ", ".join(key["scopes"]),
            key["label"],
            *map(local_time, times),
            key["replaced_by"] or "-",
        )
    print_table(table)


@keys_app.command("revoke", epilog="Example: loraplex keys revoke 3f9c0a1b2d4e")
def revoke_key(
    key_id: KeyId,
) -> None:
    """Revoke a key. Every server refuses it within a second."""
    call("DELETE", f"/admin/keys/{quote(key_id, safe='')}")
    print(f"key {key_id} is revoked")
