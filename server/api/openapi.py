"""The bodies of the inference routes in the OpenAPI document.

These routes read and validate their bodies themselves (`intake`), so FastAPI knows nothing of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from server.engine.interface import Endpoint

_REF = "#/components/schemas/{model}"


def document_bodies(app: FastAPI, endpoints: Mapping[str, Endpoint]) -> None:
    """Add the types of the endpoints' bodies to what `app.openapi` returns."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = generate()
            models = {endpoint.body for endpoint in endpoints.values()}
            schemas, definitions = models_json_schema(
                [(model, "validation") for model in models], ref_template=_REF
            )
            parts = document.setdefault("components", {}).setdefault("schemas", {})
            parts.update(definitions.get("$defs", {}))
            for path, endpoint in endpoints.items():
                document["paths"][path]["post"]["requestBody"] = {
                    "required": True,
                    "content": {
                        "application/json": {"schema": schemas[endpoint.body, "validation"]}
                    },
                }
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
