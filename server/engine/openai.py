"""Embeds vLLM's own handlers of OpenAI's and Anthropic's APIs, one by one.

Clients reach only these: vLLM's own app has many more routes, and doesn't guard them. vLLM doesn't
look up which adapter a request gets. It sees only the version on which the request holds a lease.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterator,
    Mapping,
)
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ValidationError, create_model

from adapters_registry.content.merged_model import MergedVersion
from adapters_registry.records.catalog import VersionRecord
from server.engine.errors import grammar_field, map_exception, map_response, name_field
from server.engine.grammar.budget import check_grammars
from server.engine.interface import Endpoint
from server.engine.log_filter import hide_exception_texts
from server.engine.own_defaults import (
    OwnTemplates,
    add_stop_tokens,
    current_own,
    expect_no_reasoning,
)
from server.engine.request_fields import ALLOWED, allowed_part
from server.engine.running.stream_errors import end_with_error
from server.engine.running.tier_names import name_tier
from server.engine.validation import fail_fast_validator
from server.errors import InvalidRequest
from server.tenancy.meter import current_meter
from server.tenancy.service_tiers import DEFAULT

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine.async_llm import AsyncLLM

RESPONSES = "/v1/responses"
_WHOLE_ANSWERS = frozenset(
    f"event: response.{state}"
    for state in ("created", "in_progress", "completed", "incomplete", "failed")
)
_ENGINE_HEADERS = frozenset({b"x-vllm-priority", b"x-data-parallel-rank", b"x-request-id"})

Parser = Callable[[dict[str, Any]], Any]
"""Turns a decoded JSON object into a request. See `Endpoint.parse`."""

current_lora: ContextVar[LoRARequest | None] = ContextVar("leased_adapter", default=None)


class LeasedAdapters(Mapping[str, Any]):
    """Replaces vLLM's table of adapters. Any name gives the version that the request has leased."""

    def __getitem__(self, name: str) -> LoRARequest:
        leased = current_lora.get()
        if leased is None:
            raise KeyError(name)
        return leased

    def __iter__(self) -> Iterator[str]:
        leased = current_lora.get()
        return iter([] if leased is None else [leased.lora_name])

    def __len__(self) -> int:
        return 0 if current_lora.get() is None else 1


def lora_request(version: VersionRecord, path: Path) -> LoRARequest:
    """Return the name, id and path that the engine uses for a version. None is ever reused."""
    from vllm.lora.request import LoRARequest

    return LoRARequest(
        lora_name=version.public_name, lora_int_id=version.version_id, lora_path=str(path)
    )


def make_endpoints(
    content_path: Callable[[str], Path],
    fetch: Callable[[str], Path] | None = None,
    merged: MergedVersion | None = None,
) -> dict[str, Endpoint]:
    """Return the embedded routes by path.

    `content_path` returns the directory of a digest. `fetch` returns it as well, but first loads
    the files from the origin if they aren't there. `merged` is the version whose weights are the
    base's, on a dedicated server: vLLM serves it as its base, under the version's name.
    """
    from vllm.entrypoints.anthropic import api_router as anthropic
    from vllm.entrypoints.anthropic.protocol import (
        AnthropicCountTokensRequest,
        AnthropicCountTokensResponse,
        AnthropicMessagesRequest,
        AnthropicMessagesResponse,
    )
    from vllm.entrypoints.openai.chat_completion import api_router as chat
    from vllm.entrypoints.openai.chat_completion.protocol import (
        ChatCompletionRequest,
        ChatCompletionResponse,
    )
    from vllm.entrypoints.openai.completion import api_router as completion
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest, CompletionResponse
    from vllm.entrypoints.openai.responses import api_router as responses
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest, ResponsesResponse
    from vllm.entrypoints.serve.tokenize import api_router as tokenize
    from vllm.entrypoints.serve.tokenize.protocol import (
        DetokenizeRequest,
        DetokenizeResponse,
        TokenizeResponse,
    )

    templates = OwnTemplates(fetch or content_path)
    hide_exception_texts(logging.getLogger("vllm"))

    def embed(
        path: str,
        body: type[BaseModel],
        answered: type[BaseModel],
        handler: Callable[[Any, Request], Awaitable[Response]],
        *,
        generates: bool = True,
        needs_model: bool = True,
        parse: Parser | None = None,
    ) -> Endpoint:
        async def answer(request: Any, raw: Request, version: VersionRecord | None) -> Response:
            if "cache_salt" in body.model_fields:
                request.cache_salt = cache_salt(raw.state.caller.tenant_id, request.cache_salt)
            leased = None
            if version is not None and merged is not None and version.digest == merged.digest:
                request.model = merged.public_name
            elif version is not None:
                leased = lora_request(version, content_path(version.digest))
            own = await templates.of(version, raw.state.caller.tenant)
            if own is not None:
                add_stop_tokens(request, own)
                expect_no_reasoning(request, own)
            token, own_token = current_lora.set(leased), current_own.set(own)
            grammar = grammar_field(request)
            try:
                mapped = map_response(await handler(request, _without_engine_headers(raw)))
            except Exception as error:
                raise name_field(map_exception(error), ALLOWED[path], grammar) from error
            finally:
                current_lora.reset(token)
                current_own.reset(own_token)
            meter = current_meter.get()
            if path == RESPONSES:
                tier = meter.service_tier if meter else DEFAULT
                mapped = fill_in(mapped, {"store": False, "service_tier": tier.name})
            elif meter is not None and meter.names_tier and generates:
                mapped = name_tier(mapped, path, meter.service_tier.name)
            if meter is not None:
                mapped = end_with_error(mapped, path, lambda: meter.failure)
            return mapped

        parse = parse or _parser(body, ALLOWED[path])
        return Endpoint(body, parse, answer, generates, needs_model, answered)

    generating = {
        "/v1/chat/completions": (
            ChatCompletionRequest,
            ChatCompletionResponse,
            chat.create_chat_completion,
        ),
        "/v1/completions": (CompletionRequest, CompletionResponse, completion.create_completion),
        RESPONSES: (ResponsesRequest, ResponsesResponse, responses.create_responses),
        "/v1/messages": (
            AnthropicMessagesRequest,
            AnthropicMessagesResponse,
            anthropic.create_messages,
        ),
    }
    endpoints = {path: embed(path, *endpoint) for path, endpoint in generating.items()}
    count_tokens = "/v1/messages/count_tokens"
    endpoints[count_tokens] = embed(
        count_tokens,
        AnthropicCountTokensRequest,
        AnthropicCountTokensResponse,
        anthropic.count_tokens,
        generates=False,
    )
    body, parse = _to_tokenize(ALLOWED["/tokenize"])
    without_model: dict[str, Any] = {"generates": False, "needs_model": False}
    endpoints["/tokenize"] = embed(
        "/tokenize", body, TokenizeResponse, tokenize.tokenize, parse=parse, **without_model
    )
    endpoints["/detokenize"] = embed(
        "/detokenize",
        DetokenizeRequest,
        DetokenizeResponse,
        tokenize.detokenize,
        **without_model,
    )
    return endpoints


def _to_tokenize(allowed: frozenset[str]) -> tuple[type[BaseModel], Parser]:
    """Return the type of `/tokenize`'s bodies for the OpenAPI document, and their parser.

    A body has either of two types: it has messages, or a prompt.
    """
    from vllm.entrypoints.serve.tokenize.protocol import (
        TokenizeChatRequest,
        TokenizeCompletionRequest,
    )

    fields = TokenizeCompletionRequest.model_fields | TokenizeChatRequest.model_fields
    optional: dict[str, Any] = {
        name: (cast(Any, field.annotation) | None, None) for name, field in fields.items()
    }
    of_chat = _parser(TokenizeChatRequest, allowed)
    of_prompt = _parser(TokenizeCompletionRequest, allowed)

    def parse(value: dict[str, Any]) -> Any:
        return (of_chat if "messages" in value else of_prompt)(value)

    return create_model("TokenizeBody", **optional), parse


def _parser(body: type[BaseModel], allowed: frozenset[str]) -> Parser:
    """Return a route's parser. It reports whatever vLLM's validators raise as the client's error.

    These validators see a body before its types are checked, so a wrong type may make them fail.
    """
    validator = fail_fast_validator(body)

    def parse(value: dict[str, Any]) -> Any:
        check_grammars(value)
        try:
            return validator.validate_python(allowed_part(value, allowed))
        except ValidationError:
            raise
        except Exception as error:
            if (mapped := map_exception(error)).status < 500:
                raise name_field(mapped, allowed) from error
            raise InvalidRequest(f"the body has a field of a wrong type: {error}") from error

    return parse


def longest_prompt_characters(client: AsyncLLM) -> int | None:
    """Return how many characters a prompt that fits the context can have at most."""
    if (tokenizer := client.renderer.tokenizer) is None:
        return None
    return int(client.model_config.max_model_len * tokenizer.max_chars_per_token)


def cache_salt(tenant_id: str, given: str | None) -> str:
    """Return the salt that keeps a tenant's prefixes apart in the engine's prefix cache.

    Otherwise the time to the first token would tell whether another tenant, with the same shared
    adapter or the base, has sent a prompt that begins alike. A client's own salt (`given`) divides
    its tenant's part of the cache further.
    """
    return hashlib.sha256(f"{tenant_id}\0{given or ''}".encode(errors="replace")).hexdigest()


def fill_in(response: Response, fields: dict[str, Any]) -> Response:
    """Set fields of an answer of the Responses API, where vLLM says something else.

    Clients read `store` to learn that the answer isn't kept, and `service_tier`.
    """
    if isinstance(response, StreamingResponse):
        response.body_iterator = _fill_in(response.body_iterator, fields)
    elif isinstance(response, JSONResponse):
        return JSONResponse(json.loads(bytes(response.body)) | fields)
    return response


async def _fill_in(events: AsyncIterable[Any], fields: dict[str, Any]) -> AsyncIterator[Any]:
    """Set them in the events that hold the whole answer. vLLM sends each event in one piece."""
    try:
        async for event in events:
            head, _, data = event.partition("\ndata: ") if isinstance(event, str) else ("", "", "")
            if head in _WHOLE_ANSWERS:
                values = json.loads(data)
                values["response"] |= fields
                event = f"{head}\ndata: {json.dumps(values, ensure_ascii=False)}\n\n"
            yield event
    finally:
        if isinstance(events, AsyncGenerator):
            await events.aclose()


def _without_engine_headers(raw: Request) -> Request:
    headers = [(name, value) for name, value in raw.headers.raw if name not in _ENGINE_HEADERS]
    return Request({**raw.scope, "headers": headers}, raw.receive)
