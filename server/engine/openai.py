"""vLLM's own handlers of OpenAI's and Anthropic's APIs, embedded one by one.

Only these are reachable: vLLM's own app exposes much more, unguarded. Which adapter a request gets
isn't looked up by vLLM: it sees exactly the version on which the request holds a lease.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Request
from fastapi.responses import Response
from pydantic import ValidatorFunctionWrapHandler, WrapValidator

from adapters_registry.records.catalog import VersionRecord
from server.engine.errors import map_exception, map_response
from server.engine.interface import Endpoint
from server.errors import InvalidRequest

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest

_ENGINE_HEADERS = frozenset({b"x-vllm-priority", b"x-data-parallel-rank", b"x-request-id"})
_ENGINE_FIELDS = {
    "priority": 0,
    "kv_transfer_params": None,
    "ec_transfer_params": None,
    "vllm_xargs": None,
}
"""What steers the engine and so isn't for clients, with the values that change nothing."""

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


def make_endpoints(content_path: Callable[[str], Path]) -> dict[str, Endpoint]:
    """The embedded routes; `content_path` gives the directory of a digest."""
    from vllm.entrypoints.anthropic import api_router as anthropic
    from vllm.entrypoints.anthropic.protocol import AnthropicMessagesRequest
    from vllm.entrypoints.openai.chat_completion import api_router as chat
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion import api_router as completion
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.entrypoints.openai.responses import api_router as responses
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest

    def embed(body: type, handler: Callable[[Any, Request], Awaitable[Response]]) -> Endpoint:
        async def answer(request: Any, raw: Request, version: VersionRecord | None) -> Response:
            _strip_engine_fields(request)
            request.cache_salt = cache_salt(raw.state.caller.tenant, request.cache_salt)
            leased = lora_request(version, content_path(version.digest)) if version else None
            token = current_lora.set(leased)
            try:
                response = await handler(request, _without_engine_headers(raw))
            except Exception as error:
                raise map_exception(error) from error
            finally:
                current_lora.reset(token)
            return map_response(response)

        return Endpoint(Annotated[body, WrapValidator(_parse)], answer)

    return {
        "/v1/chat/completions": embed(ChatCompletionRequest, chat.create_chat_completion),
        "/v1/completions": embed(CompletionRequest, completion.create_completion),
        "/v1/responses": embed(ResponsesRequest, responses.create_responses),
        "/v1/messages": embed(AnthropicMessagesRequest, anthropic.create_messages),
    }


def _parse(body: Any, parse: ValidatorFunctionWrapHandler) -> Any:
    """Parse a body; whatever vLLM's validators raise is the client's error.

    They see it before its types are checked, so that they may also fail on what they find there.
    """
    try:
        return parse(body)
    except ValueError:  # pydantic's own, which says where
        raise
    except Exception as error:
        if (mapped := map_exception(error)).status < 500:
            raise mapped from error
        raise InvalidRequest(f"the body has a field of a wrong type: {error}") from error


def cache_salt(tenant: str, given: str | None) -> str:
    """What keeps a tenant's prefixes apart in the engine's cache, also of shared adapters.

    Otherwise the time to the first token would tell whether another tenant has sent a prompt that
    begins alike. A client's own salt divides further, within its tenant.
    """
    return hashlib.sha256(f"{tenant}\0{given or ''}".encode(errors="replace")).hexdigest()


def _strip_engine_fields(request: Any) -> None:
    for name, harmless in _ENGINE_FIELDS.items():
        if hasattr(request, name):
            setattr(request, name, harmless)
    if hasattr(request, "request_id"):
        # A client that goes away ends every request of its id: nobody may choose another's.
        field = type(request).model_fields["request_id"]
        request.request_id = field.get_default(call_default_factory=True)


def _without_engine_headers(raw: Request) -> Request:
    headers = [(name, value) for name, value in raw.headers.raw if name not in _ENGINE_HEADERS]
    return Request({**raw.scope, "headers": headers}, raw.receive)
