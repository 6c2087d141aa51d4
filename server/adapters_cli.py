"""`loraplex adapters`: what a person does to a running server's registry."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.table import Table

from adapters_registry.content import ADAPTER_FILES
from server.settings import load_settings

app = typer.Typer(
    help="Register, list and show adapters of a running server.", no_args_is_help=True
)

MAX_REASONS = 12

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
TenantFlag = Annotated[str, typer.Option(help="Whose adapter it is.")]


@app.command()
def register(
    name: Annotated[str, typer.Argument(help="The adapter's name.")],
    source: Annotated[
        str, typer.Argument(help="A directory here, which is uploaded, or a path on the server.")
    ],
    tenant: TenantFlag = "default",
    promote: Annotated[bool, typer.Option("--promote", help="Make it live when ready.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Register a directory as the adapter's next version, and wait for the verdict."""
    fields: dict[str, Any] = {"name": name, "tenant": tenant, "promote": promote}
    directory = Path(source)
    with ExitStack() as open_files, Console(stderr=True).status(f"registering {name}"):
        if directory.is_dir():
            files = [
                ("files", (file, open_files.enter_context((directory / file).open("rb"))))
                for file in ADAPTER_FILES
                if (directory / file).is_file()
            ]
            form = {**fields, "promote": str(promote).lower()}
            # An empty part keeps the body multipart when both files are missing.
            version = _call("POST", "/admin/adapters?wait=true", data=form, files=files or _NO_FILE)
        else:
            version = _call("POST", "/admin/adapters?wait=true", json={**fields, "source": source})
    if as_json:
        print(json.dumps(version))
    else:
        print(f"{version['model']} is {version['state']} (sha256:{version['digest'][:12]})")


_NO_FILE = [("none", ("none", b""))]


@app.command("list")
def list_adapters(
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """List adapters."""
    adapters: list[dict[str, Any]] = []
    after: str | None = ""
    while after is not None:
        query = {"after": after, "limit": 1000} | ({"tenant": tenant} if tenant else {})
        page = _call("GET", "/admin/adapters", params=query)
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
            str(adapter["live"] or "-"),
            str(adapter["num_versions"]),
            str(adapter["rank"] or "-"),
            _size(adapter["size_bytes"]),
        )
    Console().print(table)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="The adapter's name.")],
    tenant: TenantFlag = "default",
    as_json: JsonFlag = False,
) -> None:
    """Show an adapter with all its versions."""
    adapter = _call("GET", f"/admin/adapters/{tenant}/{name}")
    if as_json:
        print(json.dumps(adapter))
        return
    table = Table("version", "state", "aliases", "rank", "size", "digest", "created", "reasons")
    for version in adapter["versions"]:
        aliases = sorted(a for a, n in adapter["aliases"].items() if n == version["version"])
        table.add_row(
            str(version["version"]),
            version["state"],
            ", ".join(aliases),
            str(version["rank"] or "-"),
            _size(version["size_bytes"]),
            version["digest"][:12],
            version["created_at"][:19],
            "\n".join(reason["message"] for reason in version["reasons"]),
        )
    Console().print(table)


def _call(method: str, path: str, **arguments: Any) -> Any:
    """One request to the server; an error is printed, with every reason, and ends with code 1."""
    settings = load_settings()
    key = settings.api_key
    if key is None and settings.admin_key_file.is_file():
        key = settings.admin_key_file.read_text().strip()
    try:
        response = httpx.request(
            method,
            settings.url.rstrip("/") + path,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=600,
            **arguments,
        )
        body = response.json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        _fail(f"no answer from {settings.url} (LORAPLEX_URL): {error}")
    if response.is_error:
        _fail(_explain(body["error"]))
    return body


def _explain(error: dict[str, Any]) -> str:
    """The message, or the reasons of a rejection; the server keeps those left out here."""
    reasons = [f"  {r['code']}: {r['message']}" for r in error.get("reasons", [])]
    if not reasons:
        return str(error["message"])
    left_out = len(reasons) - MAX_REASONS
    more = [f"  and {left_out} more: loraplex adapters show"] if left_out > 0 else []
    return "\n".join(["the adapter was rejected:", *reasons[:MAX_REASONS], *more])


def _fail(message: str) -> None:
    Console(stderr=True, highlight=False).print(
        f"loraplex: {message}", markup=False, soft_wrap=True
    )
    raise typer.Exit(1)


def _size(size_bytes: int | None) -> str:
    return "-" if size_bytes is None else f"{size_bytes / 1e6:.1f} MB"
