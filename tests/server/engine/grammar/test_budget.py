"""Grammars that would cost too much are refused by name, and honest ones aren't."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from server.engine.grammar.budget import check_grammars
from server.errors import SchemaTooComplex

LONG_STRINGS = {
    "type": "object",
    "properties": {
        f"p{i}": {"type": "string", "minLength": 1, "maxLength": 20001 + i} for i in range(10)
    },
}
MANY_VALUES = {"enum": [f"value number {i}" for i in range(20000)]}
MANY_PROPERTIES: dict[str, Any] = {"properties": {f"p{i}": {} for i in range(1001)}}
MANY_SUMMED = {"properties": {f"p{i}": {"maxLength": 2000} for i in range(10)}}
HUGE = {"description": "x" * (1 << 16)}


def nested(levels: int) -> Any:
    schema: Any = {}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


def in_chat(schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}


def in_tools(schema: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}]}


PLACES: dict[str, Callable[[Any], dict[str, Any]]] = {
    "response_format": in_chat,
    "tools": in_tools,
    "text": lambda schema: {"text": {"format": {"type": "json_schema", "schema": schema}}},
    "output_config": lambda schema: {"output_config": {"format": {"schema": schema}}},
    "structured_outputs.json": lambda schema: {"structured_outputs": {"json": schema}},
    "structured_outputs.structural_tag": lambda schema: {
        "structured_outputs": {"structural_tag": json.dumps({"structures": [{"schema": schema}]})}
    },
}
SCHEMAS = (LONG_STRINGS, MANY_VALUES, MANY_PROPERTIES, MANY_SUMMED, nested(40), nested(400))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("schema", SCHEMAS, ids=range(len(SCHEMAS)))
def test_costly_schemas_are_refused_wherever_they_stand(place: str, schema: Any) -> None:
    body = PLACES[place](schema)
    with pytest.raises(SchemaTooComplex) as caught:
        check_grammars(body)
    assert caught.value.param == place


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"regex": "a" * 5000}, "structured_outputs.regex"),
        ({"regex": "(a{3000})"}, "structured_outputs.regex"),
        ({"regex": "a{2000}b{2000}c{2000}d{2000}e{2000}"}, "structured_outputs.regex"),
        ({"grammar": "root ::= " + "'a' " * 5000}, "structured_outputs.grammar"),
        ({"grammar": "root ::= 'a'{1, 99999999999999999999}"}, "structured_outputs.grammar"),
        ({"choice": ["a"] * 1001}, "structured_outputs.choice"),
        ({"choice": ["a" * (1 << 16), "b"]}, "structured_outputs.choice"),
        ({"json": HUGE}, "structured_outputs.json"),
        ({"json": json.dumps(HUGE)}, "structured_outputs.json"),
    ],
)
def test_texts_are_bounded(options: dict[str, Any], param: str) -> None:
    with pytest.raises(SchemaTooComplex) as caught:
        check_grammars({"structured_outputs": options})
    assert (caught.value.param, caught.value.code) == (param, "schema_too_complex")


def test_too_many_tools() -> None:
    with pytest.raises(SchemaTooComplex, match="128 tools"):
        check_grammars({"tools": [{}] * 129})


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"tools": "no list", "structured_outputs": 3, "response_format": None},
        {"structured_outputs": {"json": "{", "choice": 3, "regex": None}},
        in_chat({"type": "object", "properties": {"a": {"type": "string", "maxLength": 200}}}),
        in_tools({"enum": [str(i) for i in range(500)]}),
        {"structured_outputs": {"regex": r"\d{3}-\d{4}", "choice": ["yes", "no"]}},
    ],
)
def test_honest_bodies_pass(body: dict[str, Any]) -> None:
    check_grammars(body)
