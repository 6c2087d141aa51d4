"""`loraplex logs`: where requests of the last hour spent their time."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.table import Table

from server.cli.client import call
from server.cli.commands import Commands
from server.cli.tables import print_table

app = Commands(
    help="Look at the requests that a server answered in the last hour.", no_args_is_help=True
)

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.command(epilog="Example: loraplex logs explain req-0123456789abcdef")
def explain(
    request_id: Annotated[
        str, typer.Argument(help="The `x-request-id` of the answer, or of the log's line.")
    ],
    as_json: JsonFlag = False,
) -> None:
    """Show where a request spent its time."""
    from server.request_log.record import STAGES

    rows = call("GET", f"/admin/requests/{quote(request_id, safe='')}").json()["data"]
    if as_json:
        print(json.dumps(rows))
        return
    for row in rows:
        print(_headline(row))
        table = Table("stage", "seconds", "share")
        for stage, seconds in row["stages"].items():
            share = seconds / row["seconds"] if row["seconds"] else 0.0
            table.add_row(STAGES.get(stage, stage), f"{seconds:.3f}", f"{share:.0%}")
        table.add_row("in all", f"{row['seconds']:.3f}", "")
        print_table(table)


@app.command("list", epilog="Example: loraplex logs list --slowest --limit 10")
def list_requests(
    tenant: Annotated[str | None, typer.Option(help="List only this tenant's requests.")] = None,
    model: Annotated[
        str | None, typer.Option(help="List only this adapter's requests (tenant/name).")
    ] = None,
    failed: Annotated[
        bool, typer.Option("--failed", help="List only requests that failed.")
    ] = False,
    slowest: Annotated[bool, typer.Option("--slowest", help="Start with the slowest.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many to show.")] = 20,
    as_json: JsonFlag = False,
) -> None:
    """List requests of the last hour, the newest first."""
    query: dict[str, Any] = {"limit": limit, "order": "slowest" if slowest else "newest"}
    query |= {k: v for k, v in {"tenant": tenant, "model": model}.items() if v is not None}
    if failed:
        query["min_status"] = 400
    rows = call("GET", "/admin/requests", params=query).json()["data"]
    if as_json:
        print(json.dumps(rows))
        return
    table = Table("at", "status", "path", "model", "seconds", "tokens", "tenant", "request id")
    for row in rows:
        tokens = f"{row['input_tokens']} + {row['output_tokens']}"
        table.add_row(
            _local(row["at"]),
            str(row["status"]),
            row["path"],
            _model(row),
            f"{row['seconds']:.3f}",
            tokens,
            row["tenant"],
            row["request_id"],
        )
    print_table(table)


def _headline(row: dict[str, Any]) -> str:
    ended = ", ".join(row["finish_reasons"]) or ("complete" if row["complete"] else "cut off")
    where = f", found in tier {row['tier']}" if row["tier"] else ""
    return (
        f"{_local(row['at'])}: {row['method']} {row['path']} for {_model(row)}{where}; status "
        f"{row['status']}; {row['input_tokens']} tokens in, {row['output_tokens']} out; {ended}"
    )


def _model(row: dict[str, Any]) -> str:
    version = "" if row["version"] is None else f"@{row['version']}"
    return f"{row['model'] or '-'}{version}"


def _local(moment: str) -> str:
    return datetime.fromisoformat(moment).astimezone().isoformat(sep=" ", timespec="milliseconds")
