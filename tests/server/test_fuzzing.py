"""Every operation of the OpenAPI document, asked by every kind of caller what nobody expects.

Schemathesis makes the requests, of each operation's schema and against it; half of them name what
is there. The bodies of `/v1` are vLLM's own, and so are the handlers, up to the engine.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import nullcontext, suppress
from functools import partial
from shutil import copytree
from typing import Any

import anyio.from_thread
import httpx
import pytest
import requests
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis.core.result import Ok
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from vllm.entrypoints.anthropic.protocol import AnthropicCountTokensResponse
from vllm.entrypoints.serve.tokenize.protocol import DetokenizeResponse, TokenizeResponse

from adapters_registry.errors import SourceRefused
from adapters_registry.records.access.suspension import resume_adapter
from adapters_registry.records.tenants import Quota, create_tenant, resume_tenant, set_quota
from adapters_registry.registry import Registry
from server.auth import Keys
from server.middleware.authentication import LOADING_PATHS, OPEN_PATHS
from tests.long_form import LONG
from tests.server.callers import make_callers
from tests.server.fake_engine import FakeEngine
from tests.server.test_isolation import ADMINS_ONLY
from tests.tiny import AdapterFactory

EXAMPLES = settings(
    max_examples=int(os.environ.get("FUZZING_EXAMPLES", "50" if LONG else "3")),
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
"""Of each operation so many that match its schema, and as many that violate it; more by hand."""
TRUE = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
"""Every answer and every error is one that the document describes, with a body as it says."""
NOBODY = ("none", "garbage", "expired", "revoked")
TENANT_OF = {"own": "acme", "other": "other"}

Send = Callable[[str, requests.PreparedRequest], httpx.Response]


class EmptyAnswers:
    """Stands in for what vLLM's handlers hand parsed bodies to."""

    async def create_tokenize(self, *_: Any) -> TokenizeResponse:
        return TokenizeResponse(count=0, max_model_len=1, tokens=[])

    async def create_detokenize(self, *_: Any) -> DetokenizeResponse:
        return DetokenizeResponse(prompt="")

    async def count_tokens(self, *_: Any) -> AnthropicCountTokensResponse:
        return AnthropicCountTokensResponse(input_tokens=1)

    def __getattr__(self, name: str) -> Any:
        async def answer(*_: Any) -> AsyncIterator[str]:
            async def nothing() -> AsyncIterator[str]:
                no_events: tuple[str, ...] = ()
                for event in no_events:
                    yield event

            return nothing()

        return answer


@pytest.fixture
def engine(registry: Registry) -> FakeEngine:
    from server.engine.openai import make_endpoints

    engine = FakeEngine()
    engine.endpoints = make_endpoints(registry.content.path)
    for api in ("chat", "completion", "responses"):
        setattr(engine.app_state, f"openai_serving_{api}", EmptyAnswers())
    engine.app_state.anthropic_serving_messages = EmptyAnswers()
    engine.app_state.serving_tokenization = EmptyAnswers()
    return engine


@pytest.fixture
def restore(
    registry: Registry, keys: Keys, make_adapter: AdapterFactory
) -> Callable[[], dict[str, str]]:
    """Bring back what an earlier operation may have deleted; how paths name what is there."""
    adapter = make_adapter()

    def restore() -> dict[str, str]:
        for tenant in TENANT_OF.values():
            registry.apply(set_quota, tenant, Quota())
            registry.apply(resume_tenant, tenant)
            stage = partial(copytree, adapter, dirs_exist_ok=True)
            version, is_new = registry.register(tenant, "bot", "test", stage)
            if is_new:
                registry.accept(version, registry.check_files(version))
            registry.apply(resume_adapter, tenant, "bot", by_admin=True)
        key_id = keys.create("acme", ["inference"]).split("-")[1]
        number = str(version.number)
        return {
            "name": "bot",
            "number": number,
            "alias": "live",
            "key_id": key_id,
            "model": "bot",
            "request_id": "req-1",
        }

    for tenant in TENANT_OF.values():
        registry.apply(create_tenant, tenant)
    return restore


@pytest.fixture
def callers(
    registry: Registry,
    keys: Keys,
    restore: Callable[[], dict[str, str]],
) -> dict[str, str]:
    return make_callers(registry, keys)


@pytest.fixture
def send(app: FastAPI, callers: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Send]:
    def refuse(source: str) -> None:
        raise SourceRefused(f"{source}: no hub in this test")

    monkeypatch.setattr("adapters_registry.sources.find_on_hub", refuse)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)

    async def ask(caller: str, request: requests.PreparedRequest) -> httpx.Response:
        headers = [
            (name.encode(), value.encode() if isinstance(value, str) else value)
            for name, value in request.headers.items()
            if name.lower() != "content-length"
        ]
        if callers[caller]:
            headers.append((b"authorization", f"Bearer {callers[caller]}".encode()))
        content = request.body
        assert content is None or isinstance(content, str | bytes)
        async with httpx.AsyncClient(transport=transport) as client:
            return await client.request(
                str(request.method), str(request.url), headers=headers, content=content
            )

    with anyio.from_thread.start_blocking_portal() as portal:
        yield lambda caller, request: portal.call(ask, caller, request)


def check(caller: str, path: str, values: Mapping[str, Any], answer: httpx.Response) -> None:
    """No failure, no more than this caller may, and errors in OpenAI's shape."""
    status = answer.status_code
    assert status < 500, answer.text
    if status >= 400:
        assert set(answer.json()["error"]) >= {"message", "type", "param", "code"}
    if path in OPEN_PATHS:
        return
    owner = values.get("tenant")
    match caller:
        case "none" | "garbage" | "expired" | "revoked":
            assert status == 401
        case "own, inference":
            assert (status == 403) == (path.startswith("/admin") or path in LOADING_PATHS)
        case "own" | "other" if any(part in path for part in ADMINS_ONLY):
            assert status in (403, 404)
        case "own" | "other" if owner is not None and owner != TENANT_OF[caller]:
            assert status in (400, 404)
        case "admin":
            assert status not in (401, 403)


def test_no_request_fails_or_does_more_than_its_caller_may(
    app: FastAPI, restore: Callable[[], dict[str, str]], callers: dict[str, str], send: Send
) -> None:
    schema = schemathesis.openapi.from_dict(app.openapi())
    statuses: dict[str, set[int]] = {caller: set() for caller in callers}
    there: dict[str, str] = {}

    def ask_as_everyone(case: schemathesis.Case[Any], tenant: str | None) -> None:
        if tenant is not None:
            known = {**there, "tenant": tenant}
            case.path_parameters = {name: known[name] for name in case.path_parameters or {}}
            if isinstance(case.body, dict) and case.path.startswith("/v1"):
                case.body["model"] = f"{tenant}/bot"
        arguments = case.as_transport_kwargs("http://loraplex")
        request = requests.Request(**arguments).prepare()
        for caller in callers:
            answer = send(caller, request)
            statuses[caller].add(answer.status_code)
            check(caller, case.path, case.path_parameters or {}, answer)
            case.validate_response(answer, checks=TRUE)

    for found in schema.get_all_operations():
        assert isinstance(found, Ok)
        operation = found.ok()
        for mode in GenerationMode.POSITIVE, GenerationMode.NEGATIVE:
            there.update(restore())
            cases = given(operation.as_strategy(mode), st.sampled_from((None, *TENANT_OF.values())))
            # Nothing can be wrong with a request that has neither parameters nor a body.
            with suppress(Unsatisfiable) if mode is GenerationMode.NEGATIVE else nullcontext():
                EXAMPLES(cases(ask_as_everyone))()
    assert all(statuses[caller] <= {200, 401} for caller in NOBODY)
    # Which of the changes succeed is chance; that requests are understood is not.
    assert {200, 400, 404} <= statuses["admin"]
    assert len(statuses["admin"] & {201, 202, 204, 409}) >= 2, "what is sent means something"
