"""What the chart repeats: the server's settings in its schema, its values in its README.

Its configuration of Envoy is repeated in `examples/`, for one server in docker compose.
`make chart-docs` writes all three; tests compare them with their sources.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from server.settings import RANK_LIMITS, RENAMED, Settings, group_of

CHART = Path(__file__).parents[2] / "helm"
README, SCHEMA = CHART / "README.md", CHART / "values.schema.json"
ENVOY = CHART.parent / "examples" / "envoy.yaml"
BEGIN, END = "<!-- values -->\n", "<!-- end of values -->\n"
SET_BY_THE_CHART = {
    "data_dir",
    "host",
    "port",
    "database_url",
    "admin_key_file",
    "console_secret_file",
}


def settings_of_the_chart() -> set[str]:
    """The settings that `settings` may hold: the server's, but for those that the chart sets."""
    fields = Settings.model_fields.items()
    return {name for name, field in fields if group_of(field) != "Client"} - SET_BY_THE_CHART


def schema() -> str:
    """`values.schema.json`, with the server's settings as they are now."""
    chart = json.loads(SCHEMA.read_text())
    known = Settings.model_json_schema()["properties"]
    properties = {name: _property(known[name]) for name in settings_of_the_chart()}
    for old, new in RENAMED.items():
        properties[old] = properties[new] | {"description": f"The old name of {new}."}
    chart["properties"]["settings"] = {
        "type": "object",
        "additionalProperties": False,
        "required": ["max_loras", "max_lora_rank", "drain_seconds"],
        "properties": dict(sorted(properties.items())),
    }
    chart["properties"]["settings"]["properties"]["max_lora_rank"]["enum"] = list(RANK_LIMITS)
    return json.dumps(chart, indent=2) + "\n"


def _property(field: dict[str, Any]) -> dict[str, Any]:
    """A setting's type and bounds; lists are written as one string in the environment."""
    kind = next((k for k in field.get("anyOf", []) if k["type"] != "null"), field)
    if kind["type"] == "array":
        kind = {"type": "string"}
    kept = ("type", "enum", "minimum", "maximum", "exclusiveMinimum", "minLength")
    bounds = {key: kind[key] for key in kept if key in kind}
    return {"description": field["description"], **bounds}


def readme() -> str:
    """`README.md`, with its table of values made of the comments in `values.yaml`."""
    before, rest = README.read_text().split(BEGIN)
    return before + BEGIN + values_table() + END + rest.split(END)[1]


def values_table() -> str:
    """A row for each value that has a comment, and for each leaf."""
    rows = ["| value | default | what it sets |", "|---|---|---|"]
    path: list[str] = []
    comment: list[str] = []
    text = (CHART / "values.yaml").read_text()
    defaults = yaml.safe_load(text)
    for line in text.splitlines():
        bare = line.strip()
        if bare.startswith("#"):
            comment.append(bare.removeprefix("#").strip())
        elif not bare:
            comment = []
        else:
            key = bare.partition(":")[0]
            path = [*path[: (len(line) - len(line.lstrip())) // 2], key]
            value = _at(defaults, path)
            is_leaf = not isinstance(value, dict) or not value or ": {" in bare
            if comment or is_leaf:
                shown = f"`{json.dumps(value)}`" if is_leaf else ""
                rows.append(f"| `{'.'.join(path)}` | {shown} | {' '.join(comment)} |")
            comment = []
    return "\n".join(rows) + "\n"


def _at(values: Any, path: list[str]) -> Any:
    for key in path:
        values = values[key]
    return values


def envoy() -> str:
    """`examples/envoy.yaml`: the chart's, with the values' defaults and compose's server."""
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    defaults, stop_seconds = values["envoy"], max(5, values["preStopSeconds"])
    text = (CHART / "files" / "envoy.yaml").read_text()
    for template, value in (
        ("{{ .Values.envoy.trustedHops }}", str(defaults["trustedHops"])),
        ('{{ default "base" .Values.settings.served_base_name | quote }}', '"base"'),
        ("{{ .Values.envoy.balancePercent }}", str(defaults["balancePercent"])),
        ("{{ max 5 (int .Values.preStopSeconds) }}", str(stop_seconds)),
        ('{{ include "loraplex.name" . }}-servers.{{ .Release.Namespace }}.svc', "loraplex"),
    ):
        text = text.replace(template, value)
    return _without_loops(text)


def _without_loops(text: str) -> str:
    """Return a template without its loops: the lists that they are over are empty by default."""
    lines, depth = [], 0
    for line in text.splitlines(keepends=True):
        depth += "{{- range " in line
        if not depth:
            lines.append(line)
        depth -= "{{- end }}" in line
    return "".join(lines)


if __name__ == "__main__":
    ENVOY.write_text(envoy())
    SCHEMA.write_text(schema())
    README.write_text(readme())
