"""Bounds what a request may ask of the grammar compiler, before it takes a slot or a turn.

All tenants share the engine's compiler, and a short schema can occupy it for minutes: for example
an `enum` of twenty thousand values, or ten strings of bounded length, which it unrolls letter by
letter.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from server.errors import SchemaTooComplex

MAX_SCHEMA_BYTES = 64 << 10
MAX_TOOLS = 128
MAX_TOOLS_BYTES = 256 << 10
MAX_PATTERN_BYTES = 4 << 10
MAX_GRAMMAR_BYTES = 16 << 10
MAX_CHOICES = 1000
MAX_ENUM_VALUES = 2000
MAX_PROPERTIES = 1000
MAX_NESTING = 32
"""Levels of objects and arrays. A schema needs two for each level of the value it describes."""
MAX_REPETITIONS = 2048
"""The largest bound of a length or a number of items: the compiler unrolls each repetition."""
MAX_TOTAL_REPETITIONS = 8192

_REPETITION_KEYWORDS = frozenset(
    {"minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"}
)
_REPEATED = re.compile(r"\{\s*(\d*)\s*,?\s*(\d*)\s*\}")


@dataclass
class _Counts:
    """Sums over all schemas of one field."""

    enum_values: int = 0
    properties: int = 0
    repetitions: int = 0


def check_grammars(body: dict[str, Any]) -> None:
    """Check every part of a request's body that becomes a grammar.

    Raises:
        SchemaTooComplex: one is too large. The message names the field.
    """
    for name, schema in _schemas(body):
        _check_schema(name, schema, MAX_SCHEMA_BYTES)
    tools = body.get("tools")
    if isinstance(tools, list):
        if len(tools) > MAX_TOOLS:
            raise SchemaTooComplex(f"at most {MAX_TOOLS} tools, not {len(tools)}", param="tools")
        _check_schema("tools", tools, MAX_TOOLS_BYTES, nesting=MAX_NESTING + 4)
    options = body.get("structured_outputs")
    if isinstance(options, dict):
        _check_text("structured_outputs.regex", options.get("regex"), MAX_PATTERN_BYTES)
        _check_text("structured_outputs.grammar", options.get("grammar"), MAX_GRAMMAR_BYTES)
        _check_choices(options.get("choice"))


def _schemas(body: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield each schema of a body with the name of its field, on every API."""
    for field in ("response_format", "text", "output_config"):
        if isinstance(body.get(field), dict):
            yield field, body[field]
    options = body.get("structured_outputs")
    if isinstance(options, dict):
        for field in ("json", "structural_tag"):
            if options.get(field) is not None:
                yield f"structured_outputs.{field}", options[field]


def _check_schema(name: str, schema: Any, max_bytes: int, nesting: int = MAX_NESTING) -> None:
    # Nesting is checked first, because the rest recurses.
    _check_nesting(name, schema, nesting)
    size = len(schema if isinstance(schema, str) else json.dumps(schema))
    if size > max_bytes:
        raise SchemaTooComplex(
            f"{name} has {size} bytes as JSON, and may have {max_bytes}", param=name
        )
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError):
            return  # vLLM will refuse it, and say why
        _check_nesting(name, schema, nesting)
    _count(name, schema, _Counts())


def _check_nesting(name: str, value: Any, most: int) -> None:
    level = [value]
    for _ in range(most + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return
    raise SchemaTooComplex(f"{name} is nested more than {most} levels deep", param=name)


def _count(name: str, value: Any, counts: _Counts) -> None:
    if isinstance(value, list):
        for each in value:
            _count(name, each, counts)
        return
    if not isinstance(value, dict):
        return
    for key, inner in value.items():
        if key == "enum" and isinstance(inner, list):
            counts.enum_values += len(inner)
        elif key in ("properties", "patternProperties") and isinstance(inner, dict):
            counts.properties += len(inner)
            for pattern in inner if key == "patternProperties" else ():
                _check_text(name, pattern, MAX_PATTERN_BYTES)
        elif key in _REPETITION_KEYWORDS and isinstance(inner, int | float):
            _check_repetition(name, f"{key} {inner:g}", inner)
            counts.repetitions += int(inner)
        elif key == "pattern" and isinstance(inner, str):
            counts.repetitions += _check_text(name, inner, MAX_PATTERN_BYTES)
        _count(name, inner, counts)
    for number, most, what in (
        (counts.enum_values, MAX_ENUM_VALUES, "enum values"),
        (counts.properties, MAX_PROPERTIES, "properties"),
        (counts.repetitions, MAX_TOTAL_REPETITIONS, "as the sum of all bounds of lengths"),
    ):
        if number > most:
            raise SchemaTooComplex(f"{name} has {number} {what}; at most {most}", param=name)


def _check_text(name: str, text: Any, max_bytes: int) -> int:
    """Check a regex or a grammar; return the sum of its bounds of repetitions."""
    if not isinstance(text, str):
        return 0
    if len(text) > max_bytes:
        raise SchemaTooComplex(
            f"{name} has {len(text)} characters; at most {max_bytes}", param=name
        )
    total = 0
    for bounds in _REPEATED.finditer(text):
        largest = max((int(bound[:9]) for bound in bounds.groups() if bound), default=0)
        _check_repetition(name, f"a repetition {bounds.group()[:24]}", largest)
        total += largest
    if total > MAX_TOTAL_REPETITIONS:
        message = f"{name} repeats {total} times in all; at most {MAX_TOTAL_REPETITIONS}"
        raise SchemaTooComplex(message, param=name)
    return total


def _check_choices(choices: Any) -> None:
    name = "structured_outputs.choice"
    if not isinstance(choices, list):
        return
    if len(choices) > MAX_CHOICES:
        raise SchemaTooComplex(f"{name} has {len(choices)}; at most {MAX_CHOICES}", param=name)
    size = sum(len(choice) for choice in choices if isinstance(choice, str))
    if size > MAX_SCHEMA_BYTES:
        raise SchemaTooComplex(
            f"{name} has {size} characters; at most {MAX_SCHEMA_BYTES}", param=name
        )


def _check_repetition(name: str, what: str, bound: float) -> None:
    if abs(bound) > MAX_REPETITIONS:
        raise SchemaTooComplex(
            f"{name} has {what}; at most {MAX_REPETITIONS}, or leave the bound out", param=name
        )
