"""vLLM's own handlers of OpenAI's and Anthropic's APIs, embedded one by one.

Only these are reachable: vLLM's own app exposes much more, unguarded. Which adapter a request gets
isn't looked up by vLLM: it sees exactly the version on which the request holds a lease.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import Request
from fastapi.responses import Response
from pydantic import BaseModel, ValidationError

from adapters_registry.records.catalog import VersionRecord
from server.engine.errors import map_exception, map_response
from server.engine.grammar.budget import check_grammars
from server.engine.interface import Endpoint
from server.engine.log_filter import hide_exception_texts
from server.engine.own_defaults import OwnTemplates, add_stop_tokens, current_own
from server.engine.request_fields import ALLOWED, allowed_part
from server.engine.validation import fail_fast_validator
from server.errors import InvalidRequest

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine.async_llm import AsyncLLM

_ENGINE_HEADERS = frozenset({b"x-vllm-priority", b"x-data-parallel-rank", b"x-request-id"})

current_lora: ContextVar[LoRARequest | None] = ContextVar("leased_adapter", default=None)


class LeasedAdapters(Mapping[str, Any]):
    """Stands in for vLLM's table of adapters: any name is the running request's leased version."""

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
    """The engine's name, id and path of a version; none of the three is ever reused."""
    from vllm.lora.request import LoRARequest

    return LoRARequest(
        lora_name=version.public_name, lora_int_id=version.version_id, lora_path=str(path)
    )


def make_endpoints(
    content_path: Callable[[str], Path], fetch: Callable[[str], Path] | None = None
) -> dict[str, Endpoint]:
    """The embedded routes; `content_path` gives the directory of a digest.

    `fetch` does so, too, after it has made sure that the files are there.
    """
    from vllm.entrypoints.anthropic import api_router as anthropic
    from vllm.entrypoints.anthropic.protocol import (
        AnthropicCountTokensRequest,
        AnthropicMessagesRequest,
    )
    from vllm.entrypoints.openai.chat_completion import api_router as chat
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion import api_router as completion
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.entrypoints.openai.responses import api_router as responses
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest

    templates = OwnTemplates(fetch or content_path)
    hide_exception_texts(logging.getLogger("vllm"))

    def embed(
        path: str,
        body: type[BaseModel],
        handler: Callable[[Any, Request], Awaitable[Response]],
        *,
        generates: bool = True,
    ) -> Endpoint:
        async def answer(request: Any, raw: Request, version: VersionRecord | None) -> Response:
            if "cache_salt" in body.model_fields:
                request.cache_salt = cache_salt(raw.state.caller.tenant_id, request.cache_salt)
            leased = lora_request(version, content_path(version.digest)) if version else None
            own = await templates.of(version, raw.state.caller.tenant)
            if own is not None:
                add_stop_tokens(request, own)
            token, own_token = current_lora.set(leased), current_own.set(own)
            try:
                response = await handler(request, _without_engine_headers(raw))
            except Exception as error:
                raise map_exception(error) from error
            finally:
                current_lora.reset(token)
                current_own.reset(own_token)
            return map_response(response)

        return Endpoint(body, _parser(body, ALLOWED[path]), answer, generates)

    generating = {
        "/v1/chat/completions": (ChatCompletionRequest, chat.create_chat_completion),
        "/v1/completions": (CompletionRequest, completion.create_completion),
        "/v1/responses": (ResponsesRequest, responses.create_responses),
        "/v1/messages": (AnthropicMessagesRequest, anthropic.create_messages),
    }
    endpoints = {path: embed(path, *endpoint) for path, endpoint in generating.items()}
    count_tokens = "/v1/messages/count_tokens"
    endpoints[count_tokens] = embed(
        count_tokens, AnthropicCountTokensRequest, anthropic.count_tokens, generates=False
    )
    return endpoints


def _parser(body: type[BaseModel], allowed: frozenset[str]) -> Callable[[dict[str, Any]], Any]:
    """Return a route's parser. Whatever vLLM's validators raise is the client's error.

    They see a body before its types are checked, so that they may fail on what they find there.
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
                raise mapped from error
            raise InvalidRequest(f"the body has a field of a wrong type: {error}") from error

    return parse


def longest_prompt_characters(client: AsyncLLM) -> int | None:
    """Return how many characters a prompt may have at most to fit the context."""
    if (tokenizer := client.renderer.tokenizer) is None:
        return None
    return int(client.model_config.max_model_len * tokenizer.max_chars_per_token)


def cache_salt(tenant_id: str, given: str | None) -> str:
    """What keeps a tenant's prefixes apart in the engine's cache, also of shared adapters.

    Otherwise the time to the first token would tell whether another tenant has sent a prompt that
    begins alike. A client's own salt divides further, within its tenant.
    """
    return hashlib.sha256(f"{tenant_id}\0{given or ''}".encode(errors="replace")).hexdigest()


def _without_engine_headers(raw: Request) -> Request:
    headers = [(name, value) for name, value in raw.headers.raw if name not in _ENGINE_HEADERS]
    return Request({**raw.scope, "headers": headers}, raw.receive)
