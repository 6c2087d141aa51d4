"""The command `loraplex adapters register`. It refuses bad input before the upload if it can."""

from __future__ import annotations

import json
import re
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn

from adapters_registry.content.adapter_files import ADAPTER_FILES, SOURCE_FILES, left_out
from adapters_registry.errors import InvalidName
from adapters_registry.names import check_name
from server.api.words import signer_in_words
from server.cli.adapters.fits import print_fit
from server.cli.adapters.shared import JsonFlag, Name, TenantFlag
from server.cli.client import call
from server.cli.console import BAD_INPUT, fail, say
from server.cli.training.probes import compare_with_original
from server.cli.training.shared import explained, read

EXAMPLES = """Examples:

loraplex adapters register smart-home ./my-adapter

loraplex adapters register smart-home ./my-adapter --promote

loraplex adapters register smart-home hf://acme/smart-home@v2

loraplex adapters register smart-home oci://registry.acme.com/models/smart-home:v2

loraplex adapters register smart-home ./rank-64 --fit-rank --data held-out.jsonl
"""

_REMOTE = re.compile(r"[a-z0-9]+://")
_ON_A_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def register(
    name: Name,
    source: Annotated[
        str,
        typer.Argument(
            help="A directory on this machine, which is uploaded, or where the server finds the "
            "adapter: hf://org/repo or hf://org/repo/folder, s3://bucket/prefix, "
            "oci://registry/repository:tag, or the absolute path of a directory on the server."
        ),
    ],
    tenant: TenantFlag = "",
    promote: Annotated[
        bool,
        typer.Option("--promote", help="Make the version live as soon as it is ready."),
    ] = False,
    allow_base_mismatch: Annotated[
        bool,
        typer.Option(
            "--allow-base-mismatch",
            help="Accept an adapter whose configuration names another base. All other checks stay.",
        ),
    ] = False,
    fit_rank: Annotated[
        bool,
        typer.Option(
            "--fit-rank",
            help="If the rank is over the server's limit: keep the adapter for a server with a "
            "higher one, and register its best fit at the limit as the next version.",
        ),
    ] = False,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Held-out conversations, with --fit-rank: the fit, as it is served, is scored "
            "beside the original in its directory."
        ),
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(
            help="The directory of the server's base, with --fit-rank: the original is run on it "
            "here, to be compared with the fit. By default the bundled base."
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Register an adapter's next version, and wait until the server has checked it.

    The first version of an adapter becomes live by itself. Later ones do with --promote, or with
    `loraplex adapters promote`.
    """
    if data is not None and not (fit_rank and Path(source).is_dir()):
        fail("--data compares a fit with its original: give --fit-rank and a directory", BAD_INPUT)
    if base is not None and not fit_rank:
        fail("--base is what the original of a fit is run on: give --fit-rank, too", BAD_INPUT)
    try:
        check_name(name, "adapter")
    except InvalidName as error:
        fail(str(error))
    flags = {
        "promote": promote,
        "allow_base_mismatch": allow_base_mismatch,
        "fit_rank": fit_rank,
    }
    fields: dict[str, Any] = {"name": name, "tenant": tenant}
    if (problem := problem_of(source)) is not None:
        fail(problem)
    with explained():
        examples = read(data, says_format=False) if data is not None else []
    if Path(source).is_dir():
        form = fields | {flag: str(value).lower() for flag, value in flags.items()}
        response = upload(Path(source), form)
        if others := left_out(file.name for file in Path(source).iterdir() if file.is_file()):
            text = ", ".join(others)
            print(f"not sent, as the server has no use for these: {text}", file=sys.stderr)
    else:
        with Console(stderr=True).status(f"registering {name}"):
            body = {**fields, **flags, "source": source}
            response = call("POST", "/admin/adapters?wait=true", json=body)
    version = response.json()
    if not as_json:
        print_verdict(version)
    comparison = None
    if "fitted" in version["metadata"]:
        difference, comparison = compare_with_original(version, source, base, examples)
        version["logprob_difference"] = difference
    elif examples:
        say(f"--data was not used: {version['model']} is no fit, its rank is within the limit")
    if comparison is not None:
        version["evaluation"] = comparison.facts()
    if as_json:
        print(json.dumps(version))
    else:
        print_fit(version)
        if comparison is not None:
            comparison.print()
    if examples and "fitted" in version["metadata"] and comparison is None:
        fail(f"{version['model']} is registered, and was not scored on --data")


def problem_of(source: str) -> str | None:
    """Return why this can't be a source, or None if this machine sees no reason."""
    if _REMOTE.match(source):
        return None
    path = Path(source)
    if path.is_dir():
        return _problem_of_files(path)
    if path.exists():
        return f"{source} is a file: give its directory"
    if _ON_A_HUB.fullmatch(source):
        return f"there is no directory {source} here: did you mean hf://{source}?"
    if not path.is_absolute():  # an absolute path may be one on the server
        return f"{source} isn't there"
    return None


def _problem_of_files(directory: Path) -> str | None:
    from adapters_registry.sources.source import missing_in

    missing = [name for name in ADAPTER_FILES if not (directory / name).is_file()]
    return f"{directory}: {missing_in(directory, missing[0])}" if missing else None


def print_verdict(version: dict[str, Any]) -> None:
    """Print the result of a registration, who has signed it, and the gate's warnings."""
    print(f"{version['model']} is {version['state']} (sha256:{version['digest'][:12]})")
    metadata = version.get("metadata", {})
    if signer := signer_in_words(metadata):
        print(signer)
    for warning in metadata.get("checked", {}).get("warnings", []):
        print(f"warning: {warning}")


def upload(directory: Path, form: dict[str, Any]) -> Any:
    """Register an adapter's two files with these form fields, and wait for the verdict."""
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), DownloadColumn()
    console = Console(stderr=True)
    bars = Progress(*columns, console=console, disable=not console.is_terminal)
    with ExitStack() as open_files, bars as progress:
        files = [
            ("files", (name, open_files.enter_context(progress.open(path, "rb", description=name))))
            for name in SOURCE_FILES
            if (path := directory / name).is_file()
        ]
        # An empty part keeps the body multipart when both files are missing.
        return call(
            "POST", "/admin/adapters?wait=true", data=form, files=files or [("none", ("none", b""))]
        )
