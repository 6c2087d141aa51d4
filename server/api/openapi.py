"""What FastAPI can't know of the OpenAPI document: errors, and bodies of the inference routes.

The inference routes read and validate their bodies themselves (`intake`), and answer with what
vLLM's handlers return. Errors of every route have one shape, and none is FastAPI's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from server.engine.interface import Endpoint

_REF = "#/components/schemas/{model}"
_ERROR = "Error"
_ERROR_SCHEMA: dict[str, Any] = {
    "title": _ERROR,
    "type": "object",
    "required": ["error"],
    "properties": {
        "type": {"const": "error", "description": "Only below /v1/messages."},
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string", "description": "What is wrong, and what to do."},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"], "description": "The field that is wrong."},
                "code": {"type": ["string", "null"], "examples": ["model_not_found"]},
            },
        },
    },
}
_ERRORS = {
    "4XX": "The request is refused, and `error` says why.",
    "5XX": "The server can't answer it now, or ended it early.",
}
_OF_FASTAPI = ("HTTPValidationError", "ValidationError")
"""Errors that FastAPI writes into each document. This server answers 400 in their place."""


def complete_document(app: FastAPI, endpoints: Mapping[str, Endpoint]) -> None:
    """Add the bodies of the endpoints, and all errors, to what `app.openapi` returns."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = generate()
            parts = document.setdefault("components", {}).setdefault("schemas", {})
            schema_of = _add_models(parts, endpoints)
            for path, endpoint in endpoints.items():
                operation = document["paths"][path]["post"]
                operation["requestBody"] = {"required": True, **_json(schema_of[endpoint.body])}
                operation["responses"]["200"] |= _answer(endpoint, schema_of)
            for operation in _operations(document):
                _add_errors(operation["responses"])
            parts[_ERROR] = _ERROR_SCHEMA
            for name in _OF_FASTAPI:
                parts.pop(name, None)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _add_models(
    parts: dict[str, Any], endpoints: Mapping[str, Endpoint]
) -> dict[type[BaseModel], Any]:
    """Add the types of bodies and answers to the document's parts. Returns a schema of each."""
    models = {
        model: None
        for endpoint in endpoints.values()
        for model in (endpoint.body, endpoint.answer)
        if model is not None
    }
    # An answer may leave out what has a default, so its schema is the one of validation, too.
    schemas, definitions = models_json_schema(
        [(model, "validation") for model in models], ref_template=_REF
    )
    parts.update(definitions.get("$defs", {}))
    return {model: schemas[model, "validation"] for model in models}


def _answer(endpoint: Endpoint, schema_of: Mapping[type[BaseModel], Any]) -> dict[str, Any]:
    schema = {"type": "object"} if endpoint.answer is None else schema_of[endpoint.answer]
    answer = _json(schema)
    if endpoint.generates:
        stream = {"type": "string", "description": "With `stream`: server-sent events."}
        answer["content"]["text/event-stream"] = {"schema": stream}
    return answer


def _add_errors(responses: dict[str, Any]) -> None:
    """Give each error its body, and say that there may be others."""
    if responses.get("422", {}).get("description") == "Validation Error":
        del responses["422"]
    for status, response in responses.items():
        if int(status) >= 400:
            response.update(_json({"$ref": _REF.format(model=_ERROR)}))
    for status, description in _ERRORS.items():
        content = _json({"$ref": _REF.format(model=_ERROR)})
        responses[status] = {"description": description, **content}


def _operations(document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for by_method in document["paths"].values():
        yield from by_method.values()


def _json(schema: Any) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": schema}}}
