"""The `loraplex` command. Each group of commands imports what it needs when it is called."""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable
from importlib import metadata
from typing import Annotated, Any, get_type_hints

import typer
from pydantic.fields import FieldInfo

from server.cli import (
    doctor,
    loadtest,
    logs,
    registry,
    tenants,
    usage,
)
from server.cli.adapters.app import app as adapters_app
from server.cli.commands import Commands
from server.cli.console import ending_on, say
from server.cli.training import (
    comparison,
    data,
    dedicate,
    evaluation,
    export,
    plan,
    quantize,
    train,
)
from server.engine.worker.lora_gpu.tuning.command import CannotTune, tune
from server.settings import (
    RENAMED,
    Settings,
    SettingsError,
    flag_of,
    group_of,
    load_settings,
    variable_of,
)

EXAMPLES = """Examples:

loraplex serve --demo

loraplex train my-adapter --data chats.jsonl

loraplex adapters register my-adapter ./my-adapter

loraplex --install-completion
"""

TUNE_EXAMPLE = "Example: loraplex tune --base /models/llama-3.1-8b --rank 16 --slots 32"

app = Commands(
    name="loraplex",
    help="Serve one base with any number of LoRA adapters. Make and register those adapters.",
    epilog=EXAMPLES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        print(f"loraplex {metadata.version('loraplex')}")
        raise typer.Exit


@app.callback()
def loraplex(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and exit.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Serve one base with any number of LoRA adapters. Make and register those adapters."""


app.add_typer(adapters_app, name="adapters")
app.add_typer(tenants.tenants_app, name="tenants")
app.add_typer(tenants.keys_app, name="keys")
app.command("usage", epilog=usage.USAGE_EXAMPLES)(usage.usage)
app.command("audit", epilog=usage.AUDIT_EXAMPLES)(usage.audit)
app.add_typer(logs.app, name="logs")
app.add_typer(registry.app, name="registry")
app.add_typer(loadtest.app, name="loadtest")
app.command("plan", epilog=plan.EXAMPLE)(plan.plan)
app.add_typer(data.app, name="data")
app.command("train", epilog=train.EXAMPLES)(train.train)
app.command("evaluate", epilog=evaluation.EXAMPLES)(evaluation.evaluate)
app.command("compare", epilog=comparison.EXAMPLES)(comparison.compare)
app.command("merge", epilog=export.MERGE_EXAMPLE)(export.merge)
app.command("combine", epilog=export.COMBINE_EXAMPLE)(export.combine)
app.command("quantize", epilog=quantize.EXAMPLES)(quantize.quantize)


@app.command("tune", epilog=TUNE_EXAMPLE)
@functools.wraps(tune)
def _tune(**options: Any) -> None:
    with ending_on(CannotTune, OSError):
        tune(**options)


def _with_setting_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one flag for each server setting, with its help, default and variable.

    Values stay text. `Settings` parses them, so a flag and its variable give the same errors. The
    command's own parameters come first.
    """
    hints = get_type_hints(command, include_extras=True)
    own = [
        parameter.replace(annotation=hints[name])
        for name, parameter in inspect.signature(command).parameters.items()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    flags = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_flag(name, field)
        )
        for name, field in Settings.model_fields.items()
        if group_of(field) != "Client" and name != "engine_args"
    ]
    hidden = Annotated[str | None, typer.Option(hidden=True)]
    flags += [
        inspect.Parameter(old, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hidden)
        for old in RENAMED
    ]
    command.__signature__ = inspect.Signature([*own, *flags])  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in [*own, *flags]}
    return command


def _flag(name: str, field: FieldInfo) -> Any:
    text = field.description
    if field.default not in (None, "", (), False):
        text = f"{text} Default: {field.default}."
    is_switch = field.annotation is bool
    option = typer.Option(
        f"--{flag_of(name)}",
        help=f"{text} {variable_of(name)}",
        rich_help_panel=group_of(field),
        show_default=False,
        metavar=None if is_switch else "VALUE",
    )
    return Annotated[(bool if is_switch else str) | None, option]


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog="Any other flag is passed to vLLM's engine unchanged, for example "
    "--gpu-memory-utilization 0.8 or --tensor-parallel-size 2.",
)
@_with_setting_flags
def serve(context: typer.Context, **flags: Any) -> None:
    """Serve the base and every registered adapter over OpenAI's API."""
    _serve(load_settings(engine_args=tuple(context.args) or None, **flags))


@app.command(
    "dedicate",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog=dedicate.EXAMPLES,
)
@_with_setting_flags
def _dedicate(
    context: typer.Context,
    version: dedicate.VersionArgument,
    *,
    beside: dedicate.BesideOption = None,
    only_merge: dedicate.OnlyMergeOption = False,
    **flags: Any,
) -> None:
    """Serve one version of one adapter, merged into the base, under its name on a second server.

    LORAPLEX_URL names a shared server, with which the answers are compared before this one is
    ready. The base is that of the shared server, and so is the database.
    """
    settings = load_settings(engine_args=tuple(context.args) or None, **flags)
    made = dedicate.make(version, settings, beside, is_served=not only_merge)
    if not only_merge:
        _serve(made.settings, made.verify)


def _serve(settings: Settings, verify: Callable[[str], None] | None = None) -> None:
    """Run a server, and end the process with its exit code."""
    import logging

    from server.process.serve import serve as run_server

    verbose = settings.log_level == "debug"
    logging.basicConfig(level=settings.log_level.upper(), format="%(levelname)s %(message)s")
    for library in ("alembic", "httpx", "httpx2", "asyncio", "vllm", "torch"):
        logging.getLogger(library).setLevel(logging.DEBUG if verbose else logging.ERROR)
    code = run_server(settings, say, verify)
    # vLLM leaves threads and exit handlers behind that may wait for each other.
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@app.command(
    "doctor",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog=doctor.EXAMPLES,
)
@_with_setting_flags
def _doctor(context: typer.Context, **flags: Any) -> None:
    """Check what this machine lacks to serve with these settings, and say what to do.

    Takes the same flags and variables as `loraplex serve`. Nothing is started or changed.
    """
    doctor.doctor(context.args, **flags)


def main() -> None:
    """Run the command line. A setting that can't be used gives one line and exit code 2."""
    with ending_on(SettingsError):
        app()
