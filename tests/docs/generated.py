"""The parts of `docs/` that are made from the code.

`make docs` (or `python -m tests.docs.generated`) writes them between their markers, and
`tests/test_docs.py` compares them with their sources.
"""

from __future__ import annotations

import ast
import itertools
import json
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer.main
from fastapi import FastAPI
from prometheus_client.metrics import MetricWrapperBase
from typer.core import TyperArgument, TyperCommand, TyperGroup

from adapters_registry.check.base import BaseSpec
from adapters_registry.content.store import ContentStore
from adapters_registry.registry import Registry
from server import metrics
from server.api.registry_metrics import RegistryMetrics
from server.api.waiting import WaitingMetrics
from server.app import build_server
from server.cli.main import app as command_line
from server.engine.request_fields import ALLOWED
from server.residency.metrics import ResidencyMetrics
from server.residency.states import TRANSITIONS, State
from server.settings import Settings, flag_of, group_of, variable_of
from tests.clients import matrix
from tests.server.fake_engine import FakeEngine
from tests.soak import report
from tests.tiny import TINY_BASE

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PACKAGES = ("server", "adapters_registry", "training", "loadtest")
_PART = re.compile(r"<!-- generated: ([\w-]+) -->\n.*?<!-- end -->", re.DOTALL)


def settings() -> str:
    """Return a table for each group of settings."""
    text = []
    for group in dict.fromkeys(group_of(field) for field in Settings.model_fields.values()):
        text += [f"## {group}", "", "| setting | flag | default | what it sets |"]
        text.append("|---|---|---|---|")
        for name, field in Settings.model_fields.items():
            if group_of(field) == group:
                default = "" if field.default in (None, "", ()) else f"`{field.default}`"
                flag = "" if group == "Client" or name == "engine_args" else f"`--{flag_of(name)}`"
                description = str(field.description).replace("|", "\\|")
                text.append(f"| `{variable_of(name)}` | {flag} | {default} | {description} |")
        text.append("")
    return "\n".join(text).rstrip()


def metric_table() -> str:
    """Return a row for each metric: its name, kind, labels, and what it counts."""
    rows = ["| metric | kind | labels | what it says |", "|---|---|---|---|"]
    for name, kind, labels, text in sorted(_metrics()):
        rows.append(f"| `{name}` | {kind} | {', '.join(labels)} | {text} |")
    return "\n".join(rows)


def _metrics() -> Iterator[tuple[str, str, tuple[str, ...], str]]:
    with tempfile.TemporaryDirectory() as folder:
        registry = _registry(Path(folder))
        collected = [*RegistryMetrics(registry).collect()]
        registry.close()
    collected += ResidencyMetrics([], max_loras=1, disk_bytes=0, base_name="base").collect()
    collected += WaitingMetrics({}).collect()
    for metric in collected:
        if metric.name.startswith("loraplex_"):
            labels = tuple(getattr(metric, "_labelnames", ()))
            yield metric.name, metric.type, labels, metric.documentation
    for declared in vars(metrics).values():
        if isinstance(declared, MetricWrapperBase):
            kind = str(declared._type)
            name = declared._name + ("_total" if kind == "counter" else "")
            yield name, kind, tuple(declared._labelnames), declared._documentation


def _registry(folder: Path) -> Registry:
    base = BaseSpec.from_config("tiny", TINY_BASE, max_rank=8)
    url = f"sqlite:///{folder / 'registry.db'}"
    return Registry(url, ContentStore(folder / "content"), base)


def application(folder: Path) -> FastAPI:
    """Return the whole app on a fake engine, with its files in `folder`."""
    return build_server(Settings(data_dir=folder), _registry(folder), FakeEngine()).app


def routes(tag: str) -> str:
    """Return a row for each operation that has a tag: method, path, what it does."""
    with tempfile.TemporaryDirectory() as folder:
        document = application(Path(folder)).openapi()["paths"]
    rows = ["| route | what it does |", "|---|---|"]
    for path, operations in document.items():
        for method, operation in operations.items():
            if tag in operation.get("tags", []):
                text = " ".join(operation.get("description", "").split("\n\n")[0].split())
                query = [p["name"] for p in operation.get("parameters", []) if p["in"] == "query"]
                asked = f" Query: {', '.join(f'`{name}`' for name in query)}." if query else ""
                rows.append(f"| `{method.upper()} {path}` | {text}{asked} |")
    return "\n".join(rows)


def inference_routes() -> str:
    """Return a row for each route of OpenAI's and Anthropic's APIs, and those that tokenize."""
    rows = ["| route | what it does |", "|---|---|"]
    rows += [f"| `POST {path}` | Answered by vLLM's handler. |" for path in sorted(ALLOWED)]
    return "\n".join(rows + [row for row in routes("inference").splitlines() if "`GET" in row])


def commands() -> str:
    """Return a table of every command, with its arguments and options."""
    text: list[str] = []
    for path, command in sorted(all_commands().items()):
        text += [f"## {path}", "", " ".join((command.help or "").split()), ""]
        takes_settings = path in ("loraplex serve", "loraplex doctor", "loraplex dedicate")
        parameters = [p for p in command.params if not (takes_settings and _is_setting(p))]
        if parameters:
            text += ["| argument or option | what it is |", "|---|---|"]
            text += [f"| {_usage(p)} | {_help(p)} |" for p in parameters]
            text.append("")
        if takes_settings:
            others = "other " if parameters else ""
            text += [f"Its {others}options are the [settings](settings.md).", ""]
    return "\n".join(text).rstrip()


def _is_setting(parameter: Any) -> bool:
    return parameter.name in Settings.model_fields or parameter.hidden


def all_commands() -> dict[str, TyperCommand]:
    """Return every command by its words, such as `loraplex adapters list`."""
    group = typer.main.get_command(command_line)
    assert isinstance(group, TyperGroup)
    return dict(_commands(group, "loraplex"))


def _commands(group: TyperGroup, path: str) -> Iterator[tuple[str, TyperCommand]]:
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from _commands(command, f"{path} {name}")
        elif isinstance(command, TyperCommand):
            yield f"{path} {name}", command


def _usage(parameter: Any) -> str:
    if isinstance(parameter, TyperArgument):
        return f"`{(parameter.metavar or parameter.name or '').upper()}`"
    return ", ".join(f"`{name}`" for name in [*parameter.opts, *parameter.secondary_opts])


def _help(parameter: Any) -> str:
    text = " ".join((parameter.help or "").split()).replace("|", "\\|")
    default = parameter.default
    if parameter.show_default and isinstance(default, str | int | float) and default is not False:
        text += f" Default: `{default}`."
    return text.strip()


def client_examples() -> str:
    """Return a table of the clients that `make clients` runs, then each one's example."""
    results = json.loads(matrix.RESULTS.read_text())
    rows = ["| client | versions | its example, last run |", "|---|---|---|"]
    shown: dict[str, str] = {}
    for client in matrix.clients():
        result = results.get(client.name, {"outcome": "never run", "on": ""})
        packages = ", ".join(f"`{package}`" for package in client.packages)
        rows.append(f"| {client.title} | {packages} | {result['outcome']} {result['on']} |")
        if client.example not in shown:
            shown[client.example] = f"## {client.title.split(',')[0]}\n\n{client.point}"
    language = {".py": "python", ".mjs": "js", ".sh": "bash"}
    for example, text in shown.items():
        file = matrix.EXAMPLES / example
        code = file.read_text().rstrip()
        rows += ["", text, "", f"```{language[file.suffix]}", code, "```"]
    return "\n".join(rows)


def soak_report() -> str:
    """Return what the last whole soak found."""
    return report.Report.of_json(json.loads(report.RESULTS.read_text())).text()


def version_states() -> str:
    """Return a Mermaid picture of what may happen to a version in an engine."""
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {State.ABSENT}"]
    for (before, event), after in TRANSITIONS.items():
        lines.append(f"    {before} --> {after}: {event}")
    return "\n".join([*lines, "```"])


def all_modules() -> Iterator[tuple[Path, Path]]:
    """Yield every module of the packages, with its folder."""
    for package in PACKAGES:
        for folder in sorted({file.parent for file in (ROOT / package).rglob("*.py")}):
            for file in sorted(folder.glob("*.py")):
                if file.name != "__init__.py" and folder.name != "versions":
                    yield file, folder


def modules() -> str:
    """Return a table for each folder: its modules with the first sentence of their docstrings."""
    text: list[str] = []
    for folder, files in itertools.groupby(all_modules(), key=lambda pair: pair[1]):
        text += [f"**{folder.relative_to(ROOT)}/**", "", "| module | what is in it |", "|---|---|"]
        text += [f"| `{file.name}` | {summary(file)} |" for file, _ in files]
        text.append("")
    return "\n".join(text).rstrip()


def summary(file: Path) -> str:
    """Return the first paragraph of a module's docstring, in one line."""
    docstring = ast.get_docstring(ast.parse(file.read_text())) or ""
    return " ".join(docstring.split("\n\n")[0].split()).replace("|", "\\|")


PARTS: dict[str, Callable[[], str]] = {
    "settings": settings,
    "metrics": metric_table,
    "inference-routes": inference_routes,
    "admin-routes": lambda: routes("admin"),
    "vllm-routes": lambda: routes("vllm"),
    "operations-routes": lambda: routes("operations"),
    "commands": commands,
    "clients": client_examples,
    "soak": soak_report,
    "version-states": version_states,
    "modules": modules,
}


def current(page: str) -> str:
    """Return a page with its generated parts made again."""

    def write(match: re.Match[str]) -> str:
        name = match[1]
        return f"<!-- generated: {name} -->\n\n{PARTS[name]()}\n\n<!-- end -->"

    return _PART.sub(write, page)


def generated_pages() -> list[Path]:
    """Return the pages that have a generated part."""
    return [page for page in sorted(DOCS.glob("*.md")) if _PART.search(page.read_text())]


if __name__ == "__main__":
    for page in generated_pages():
        page.write_text(current(page.read_text()))
