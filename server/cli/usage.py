"""`loraplex usage` and `loraplex audit`: what was used, and who changed what."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.table import Table

from server.cli.client import call
from server.cli.tables import print_table

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
TenantFlag = Annotated[str | None, typer.Option(help="Only this tenant's.")]
Moment = Annotated[datetime | None, typer.Option(help="In local time.")]


def usage(
    tenant: TenantFlag = None,
    since: Moment = None,
    until: Moment = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV instead of a table.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Show what tenants have used, of which adapter, by whole hours.

    Without --since, the last 31 days.
    """
    moments = {"since": since, "until": until}
    query: dict[str, Any] = {k: v.astimezone().isoformat() for k, v in moments.items() if v}
    if tenant:
        query["tenant"] = tenant
    if as_csv:
        print(call("GET", "/admin/usage", params=query | {"format": "csv"}).text, end="")
        return
    rows = call("GET", "/admin/usage", params=query).json()["data"]
    if as_json:
        print(json.dumps(rows))
        return
    table = Table("tenant", "adapter", "requests", "tokens in", "out", "slot s", "cold starts")
    for row in rows:
        del row["tenant_id"]
        table.add_row(*(f"{v:.1f}" if isinstance(v, float) else str(v) for v in row.values()))
    print_table(table)


def audit(
    tenant: TenantFlag = None,
    subject: Annotated[str | None, typer.Option(help="As listed: default/home@live.")] = None,
    action: Annotated[str | None, typer.Option(help="As listed: alias.point.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="The newest so many.")] = 50,
    as_json: JsonFlag = False,
) -> None:
    """Show who changed what, when and from where; newest first."""
    filters = {"tenant": tenant, "subject": subject, "action": action}
    query: dict[str, Any] = {k: v for k, v in filters.items() if v is not None}
    entries = call("GET", "/admin/audit", params=query | {"limit": limit}).json()["data"]
    if as_json:
        print(json.dumps(entries))
        return
    table = Table("when", "who", "from", "action", "subject", "before", "after")
    for entry in entries:
        states = (json.dumps(entry[key]) if entry[key] else "" for key in ("before", "after"))
        table.add_row(
            entry["at"][:19],
            entry["actor"],
            entry["origin"],
            entry["action"],
            entry["subject"],
            *states,
        )
    print_table(table)
