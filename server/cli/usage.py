"""The commands `loraplex usage` and `loraplex audit`."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.table import Table

from server.api.words import change_in_words
from server.cli.client import call
from server.cli.tables import local_time, print_table

USAGE_EXAMPLES = """Examples:

loraplex usage --tenant acme --since 2026-01-01

loraplex usage --csv > usage.csv
"""
AUDIT_EXAMPLES = """Examples:

loraplex audit --limit 20

loraplex audit --subject default/smart-home@live
"""

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
TenantFlag = Annotated[str | None, typer.Option(help="Show only this tenant's entries.")]
Moment = Annotated[
    datetime | None, typer.Option(help="A time in local time, for example 2026-01-31.")
]


def usage(
    tenant: TenantFlag = None,
    since: Moment = None,
    until: Moment = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV instead of a table.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Show the usage of each adapter by tenants. Times count in whole hours.

    By default it shows the last 31 days.
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
    headings = ("tenant", "adapter", "requests", "tokens in", "out", "slot s", "cold starts")
    table = Table(*headings, "of tokens: flex", "priority")
    names = ("tenant", "adapter", "requests", "input_tokens", "output_tokens")
    for row in rows:
        by_tier = (
            row[f"{tier}_input_tokens"] + row[f"{tier}_output_tokens"]
            for tier in ("flex", "priority")
        )
        cells = (
            *(row[name] for name in names),
            f"{row['slot_seconds']:.1f}",
            row["cold_starts"],
            *by_tier,
        )
        table.add_row(*map(str, cells))
    print_table(table)


def audit(
    tenant: TenantFlag = None,
    subject: Annotated[
        str | None,
        typer.Option(
            help="Show only changes of this subject, for example default/smart-home@live."
        ),
    ] = None,
    action: Annotated[
        str | None, typer.Option(help="Show only this action, for example alias.point.")
    ] = None,
    limit: Annotated[
        int, typer.Option(min=1, max=1000, help="How many entries to show, the newest ones.")
    ] = 50,
    as_json: JsonFlag = False,
) -> None:
    """Show who changed what, when and from where, the newest first."""
    filters = {"tenant": tenant, "subject": subject, "action": action}
    query: dict[str, Any] = {k: v for k, v in filters.items() if v is not None}
    entries = call("GET", "/admin/audit", params=query | {"limit": limit}).json()["data"]
    if as_json:
        print(json.dumps(entries))
        return
    table = Table("when", "who", "from", "action", "subject", "change")
    for entry in entries:
        label = entry.get("actor_label")
        table.add_row(
            local_time(entry["at"]),
            entry["actor"] + (f" ({label})" if label else ""),
            entry["origin"],
            entry["action"],
            entry["subject"],
            change_in_words(entry["before"], entry["after"]),
        )
    print_table(table)
