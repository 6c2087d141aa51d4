"""Maps vLLM's errors to the server's own, so that clients never see vLLM's."""

from __future__ import annotations

import json
import re
from typing import Any

from fastapi.responses import JSONResponse, Response

from server.errors import (
    APIError,
    ClientWentAway,
    ContextTooLong,
    InvalidRequest,
    SchemaTooComplex,
    Unavailable,
)
from server.errors.own_words import in_own_words
from server.tenancy.demand import PROMPTS

TOO_COMPLEX, NOT_COMPILED = "the grammar takes", "the grammar can't be compiled"
"""How the messages of `GrammarTrials` begin. They mark the errors: vLLM's handlers drop the code,
and nobody there knows the field."""
_FIELDS_OF_GRAMMARS = ("structured_outputs", "response_format", "text", "output_config", "tools")
_ABOUT_PROMPTS = ("Token id ", "Unsupported chat content part")
_OVER_LONG = ("maximum context length", "max_model_len", "maximum model length")


def map_exception(error: Exception) -> APIError:
    """Return the error that a client gets for what a vLLM handler raised."""
    if isinstance(error, APIError):
        return error
    from vllm.entrypoints.serve import create_error_response
    from vllm.v1.engine.exceptions import EngineDeadError

    if isinstance(error, EngineDeadError):
        return Unavailable("the engine died while answering; it is being restarted, try again")
    info = create_error_response(error).error
    return _translate(info.code, info.message, info.param)


def grammar_field(request: Any) -> str | None:
    """Return the field of a parsed request that its answer's grammar comes from, if it has one.

    Ask before vLLM's handler has the request, because the handler sets fields.
    """
    return next((f for f in _FIELDS_OF_GRAMMARS if getattr(request, f, None) is not None), None)


def name_field(error: APIError, fields: frozenset[str], grammar: str | None = None) -> APIError:
    """Make a client's error name the field of its request that is wrong, where that is known.

    vLLM often names a parameter of its own, or names the field only in the message. `grammar` is
    the field that the answer's grammar comes from.
    """
    if error.message.startswith((TOO_COMPLEX, NOT_COMPILED)) and error.param is None:
        error.param = grammar
        return error
    if error.param == "logprobs" and "top_logprobs" in fields:
        error.param = "top_logprobs"  # vLLM has one parameter for both APIs
    if error.status >= 500 or re.split(r"[.\[]", error.param or "")[0] in fields:
        return error
    if isinstance(error, ContextTooLong) or error.message.startswith(_ABOUT_PROMPTS):
        error.param = next(filter(fields.__contains__, PROMPTS), None)
    else:
        words = [word for word in re.findall(r"\w+", error.message) if word in fields]
        others = (word for word in words if word not in ("model", "user"))
        error.param = max(others, key=len, default=None)  # of equally long ones the first
    return error


def for_handlers(error: APIError) -> Exception:
    """Wrap an error of ours so that vLLM's handlers pass on its status and message."""
    from http import HTTPStatus

    from vllm.exceptions import GracefulHTTPError

    passed_on: Exception = GracefulHTTPError(error.message, HTTPStatus(error.status))
    return passed_on


def map_response(response: Response | None) -> Response:
    """Return vLLM's answer, or raise the error that it holds as an `APIError`.

    If the client went away, vLLM answers None, and since 0.33 an empty response. Nobody reads it.
    """
    if response is None or getattr(response, "body", None) == b"":
        return Response(status_code=ClientWentAway.status)
    if response.status_code < 400 or not isinstance(response, JSONResponse):
        return response
    error = json.loads(bytes(response.body)).get("error", {})
    raise _translate(response.status_code, error.get("message", ""), error.get("param"))


def _translate(status: int, message: str, param: str | None) -> APIError:
    message = in_own_words(message)
    if status == 503:
        return Unavailable(message)
    if status >= 500 and status != 501:
        return APIError("the engine could not answer this request; the server's log has the cause")
    if message.startswith(TOO_COMPLEX):
        return SchemaTooComplex(message, param=param)
    is_too_long = any(phrase in message for phrase in _OVER_LONG)
    error = (ContextTooLong if is_too_long else InvalidRequest)(message, param=param)
    error.status = status
    return error
