"""The errors a client can meet, each with its status and code, in OpenAI's shape.

APIError
├── InvalidRequest      400
├── Unauthenticated     401
├── Forbidden           403
├── NotFound            404
│   └── ModelNotFound
├── Conflict            409
├── ChangedMeanwhile    412
├── TooLarge            413
├── OverQuota           429  too many requests or tokens a minute, or at a time
├── QuotaExceeded       429  too many adapters, or bytes of them: waiting doesn't help
├── Rejected            422  an adapter that can't work, with every reason
├── InsufficientStorage 507  the disk, or the budget for it, is full
└── Unavailable         503  engine starting, restarting, draining
    ├── NotLoadable          an adapter that the engine refuses
    ├── ContentUnavailable   an adapter's files are missing or damaged
    ├── RegistryUnavailable  its database doesn't answer: no changes now
    └── StoreUnavailable     a hub or an S3-compatible store doesn't answer
"""

from __future__ import annotations

import logging
import sqlite3
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DataError, OperationalError
from starlette.exceptions import HTTPException

from adapters_registry import errors as registry_errors

log = logging.getLogger(__name__)


class APIError(Exception):
    """Base of all; `message` says what to do."""

    status = 500
    type = "server_error"
    code = "internal_error"

    def __init__(self, message: str, *, param: str | None = None, **extra: Any) -> None:
        super().__init__(message)
        self.message, self.param, self.extra = message, param, extra

    @property
    def headers(self) -> dict[str, str]:
        """Headers that go with the answer."""
        return {}


class InvalidRequest(APIError):
    """The request can't be understood or has a value that isn't allowed."""

    status, type, code = 400, "invalid_request_error", "invalid_request"


class Unauthenticated(APIError):
    """No key, or one that isn't valid."""

    status, type, code = 401, "invalid_request_error", "invalid_api_key"

    @property
    def headers(self) -> dict[str, str]:
        return {"www-authenticate": "Bearer"}


class Forbidden(APIError):
    """A valid key without the scope."""

    status, type, code = 403, "permission_error", "insufficient_scope"


class NotFound(APIError):
    """No such route or record."""

    status, type, code = 404, "invalid_request_error", "not_found"


class ModelNotFound(NotFound):
    """The `model` names nothing that this caller may use."""

    code = "model_not_found"


class Conflict(APIError):
    """The state of things doesn't allow it."""

    status, type, code = 409, "invalid_request_error", "conflict"


class ChangedMeanwhile(APIError):
    """A precondition (`If-Match`) that doesn't hold."""

    status, type, code = 412, "invalid_request_error", "changed_meanwhile"


class TooLarge(APIError):
    """An upload over the limit."""

    status, type, code = 413, "invalid_request_error", "too_large"


class Rejected(APIError):
    """An adapter that can't work on this base."""

    status, type, code = 422, "invalid_request_error", "adapter_rejected"


class OverQuota(APIError):
    """Too many requests or tokens a minute, or at a time: wait."""

    status, type, code = 429, "rate_limit_error", "rate_limit_exceeded"

    def __init__(
        self, message: str, *, retry_after_seconds: int, rate_headers: dict[str, str]
    ) -> None:
        super().__init__(message)
        self.retry_after_seconds, self.rate_headers = retry_after_seconds, rate_headers

    @property
    def headers(self) -> dict[str, str]:
        return {"retry-after": str(max(1, self.retry_after_seconds)), **self.rate_headers}


class QuotaExceeded(APIError):
    """Too many adapters, or bytes of them: retire some, or have the quota raised."""

    status, type, code = 429, "rate_limit_error", "insufficient_quota"

    @property
    def headers(self) -> dict[str, str]:
        return {"x-should-retry": "false"}  # OpenAI's clients would try again


class Unavailable(APIError):
    """Try again later: the engine, or this adapter in it, can't answer now."""

    status, type, code = 503, "service_unavailable_error", "engine_unavailable"

    def __init__(self, message: str, *, retry_after_seconds: int = 5, **extra: Any) -> None:
        super().__init__(message, **extra)
        self.retry_after_seconds = retry_after_seconds

    @property
    def headers(self) -> dict[str, str]:
        return {"retry-after": str(self.retry_after_seconds)}


class NotLoadable(Unavailable):
    """The engine is well, and refuses this adapter's weights."""


class SlotTimeout(Unavailable):
    """All slots stayed busy with other adapters for as long as a request may wait."""

    code = "slot_timeout"


class ContentUnavailable(Unavailable):
    """An adapter's files are missing or damaged here, and no origin has them."""

    code = "content_unavailable"


class RegistryUnavailable(Unavailable):
    """The registry's database doesn't answer; what is known of it goes on serving."""

    code = "registry_unavailable"


class StoreUnavailable(Unavailable):
    """A hub or an S3-compatible store that doesn't answer, or refuses the server."""

    code = "store_unavailable"


class InsufficientStorage(APIError):
    """The disk, or the budget for it, is full."""

    status, type, code = 507, "server_error", "insufficient_storage"


def error_response(error: APIError, path: str) -> JSONResponse:
    """Render an error; /v1/messages adds Anthropic's `type: error` to OpenAI's shape."""
    body: dict[str, Any] = {
        "error": {
            "message": error.message,
            "type": error.type,
            "param": error.param,
            "code": error.code,
            **error.extra,
        }
    }
    if path.startswith("/v1/messages"):
        body["type"] = "error"
    return JSONResponse(body, status_code=error.status, headers=error.headers)


def install(app: FastAPI) -> None:
    """Register the one handler for every error of ours, the registry's and the framework's."""

    async def handle(request: Request, error: Exception) -> JSONResponse:
        api_error = to_api_error(error)
        if isinstance(api_error, InsufficientStorage):
            log.error("%s refused: %s", request.url.path, api_error.message)
        elif api_error.status >= 500 and not isinstance(api_error, Unavailable):
            log.error("%s failed", request.url.path, exc_info=error.__cause__ or error)
        return error_response(api_error, request.url.path)

    for kind in (
        APIError,
        registry_errors.RegistryError,
        RequestValidationError,
        HTTPException,
        # By name: what only `Exception` matches is raised again behind the answer, and the server
        # then ends the connection and logs the whole trace.
        OperationalError,
        Exception,
    ):
        app.add_exception_handler(kind, handle)


def to_api_error(error: Exception) -> APIError:
    """The client's view of any error; of the inside it says nothing."""
    match error:
        case APIError():
            return error
        case registry_errors.NotFound():
            return NotFound(str(error))
        case registry_errors.Conflict() | registry_errors.KeyReused():
            return Conflict(str(error))
        case registry_errors.QuotaExceeded():
            return QuotaExceeded(str(error))
        case registry_errors.ChangedMeanwhile():
            return ChangedMeanwhile(str(error))
        case registry_errors.InsufficientStorage():
            return InsufficientStorage(str(error))
        case registry_errors.ContentUnavailable():
            return ContentUnavailable(str(error))
        case registry_errors.StoreUnavailable():
            return StoreUnavailable(str(error))
        case registry_errors.RegistryError():
            return InvalidRequest(str(error))
        case OperationalError(orig=sqlite3.Error(sqlite_errorcode=sqlite3.SQLITE_FULL)):
            return InsufficientStorage(
                "the disk of LORAPLEX_DATA_DIR is full: free space there, then try again"
            )
        case OperationalError():
            return RegistryUnavailable(
                "the registry's database doesn't answer, so nothing can be changed or listed now; "
                "adapters go on serving. Try again"
            )
        case DataError() | UnicodeEncodeError():
            return InvalidRequest(
                "a value can't be kept: text may hold neither NUL nor half a surrogate pair, and a "
                "time must be before the year 10000"
            )
        case RequestValidationError():
            first = error.errors()[0]
            if first["type"] == "json_invalid":
                return InvalidRequest(f"the body is no JSON: {first['ctx']['error']}")
            param = ".".join(str(part) for part in first["loc"] if part != "body") or None
            return InvalidRequest(f"{param or 'body'}: {first['msg']}", param=param)
        case HTTPException():
            return _framework_error(error)
    return APIError("something went wrong inside; the server's log has the cause")


def rejected(reasons: list[dict[str, Any]]) -> Rejected:
    """The 422 for an adapter that the gate refused."""
    text = "; ".join(str(reason["message"]) for reason in reasons)
    return Rejected(f"the adapter can't work on this base: {text}", reasons=reasons)


def _framework_error(error: HTTPException) -> APIError:
    if error.status_code == 404:
        return NotFound("there is no such route; /docs lists them")
    api_error = InvalidRequest(str(error.detail))
    api_error.status = error.status_code
    if error.status_code == TooLarge.status:
        api_error.code = TooLarge.code
    return api_error
