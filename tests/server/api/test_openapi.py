"""What the OpenAPI document says of answers and errors; `test_fuzzing.py` compares it with them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import httpx
import pytest
import schemathesis
from fastapi import FastAPI
from schemathesis.core.failures import Failure, FailureGroup

from adapters_registry.registry import Registry
from server.engine.openai import make_endpoints
from tests.server.fake_engine import FakeEngine
from tests.server.test_fuzzing import TRUE

ERROR = {"$ref": "#/components/schemas/Error"}
OF_AN_ERROR = {"message": "no", "type": "invalid_request_error", "param": None, "code": "conflict"}


@pytest.fixture
def engine(registry: Registry) -> FakeEngine:
    engine = FakeEngine()
    engine.endpoints = make_endpoints(registry.content.path)
    return engine


@pytest.fixture
def document(app: FastAPI) -> dict[str, Any]:
    return app.openapi()


def responses_of(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        f"{method} {path}": operation["responses"]
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    }


def test_every_operation_says_what_its_errors_look_like(document: dict[str, Any]) -> None:
    for operation, responses in responses_of(document).items():
        assert {"4XX", "5XX"} <= responses.keys(), operation
        for status, response in responses.items():
            if status[0] in "45":
                assert response["content"]["application/json"]["schema"] == ERROR, operation


def test_errors_that_this_server_never_gives_are_not_described(document: dict[str, Any]) -> None:
    assert "HTTPValidationError" not in str(document)
    assert not {"HTTPValidationError", "ValidationError"} & document["components"]["schemas"].keys()


def test_inference_routes_describe_their_answers_and_streams(
    document: dict[str, Any], engine: FakeEngine
) -> None:
    for path, endpoint in engine.endpoints.items():
        content = document["paths"][path]["post"]["responses"]["200"]["content"]
        assert endpoint.answer is not None
        schema = {"$ref": f"#/components/schemas/{endpoint.answer.__name__}"}
        assert content["application/json"] == {"schema": schema}
        assert ("text/event-stream" in content) == endpoint.generates


@pytest.mark.parametrize(
    ("status", "body", "content_type"),
    [
        (299, {"object": "list"}, "application/json"),
        (200, ["a model"], "application/json"),
        (200, {"object": "list"}, "text/html"),
        (400, {"detail": "no"}, "application/json"),
        (503, {"error": {"message": "no"}}, "application/json"),
        (404, {"error": OF_AN_ERROR | {"message": 7}}, "application/json"),
    ],
)
def test_an_answer_that_is_not_as_described_is_found(
    app: FastAPI, status: int, body: object, content_type: str
) -> None:
    """So the comparison of `test_fuzzing.py` can fail."""
    case = schemathesis.openapi.from_dict(app.openapi())["/v1/models"]["GET"].Case()
    request = httpx.Request("GET", "http://loraplex/v1/models")

    def answer(status: int, body: object, content_type: str) -> httpx.Response:
        headers = {"content-type": content_type}
        made = httpx.Response(status, headers=headers, json=body, request=request)
        made.elapsed = timedelta()
        return made

    case.validate_response(answer(404, {"error": OF_AN_ERROR}, "application/json"), checks=TRUE)
    with pytest.raises((Failure, FailureGroup)):
        case.validate_response(answer(status, body, content_type), checks=TRUE)
