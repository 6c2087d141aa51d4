"""The errors a client can meet, each with its status and code, in OpenAI's shape.

APIError
├── InvalidRequest      400
│   ├── ContextTooLong       a prompt that no context of this model holds
│   └── SchemaTooComplex     a grammar that takes too long to compile
├── Unauthenticated     401
├── Forbidden           403
├── NotFound            404
│   └── ModelNotFound
│       └── ModelIncompatible    it belongs to another base than this server's, or is too large
├── Conflict            409
├── ChangedMeanwhile    412
├── TooLarge            413
├── Rejected            422  an adapter that cannot work, with every reason
├── OverQuota           429  too many requests, tokens or bytes: wait
│   └── NeverFits            more than the whole quota: waiting does not help
├── QuotaExceeded       429  too many adapters, or bytes of them: waiting does not help
├── ClientWentAway      499  nobody reads the answer any more
├── TookTooLong         504  ended early, because it ran as long as a request may
├── InsufficientStorage 507  the disk, or the budget for it, is full
└── Unavailable         503  something that the request needs is not there now
    ├── Suspended            an adapter or a tenant is suspended until it is resumed
    ├── NotServing           this server starts or stops: another one may answer
    ├── NotLoadable          the engine refuses an adapter's weights
    ├── SlotTimeout          no slot became free in time
    ├── Preempted            ended early, so that another tenant gets a slot
    ├── Overloaded           no memory for more request bodies
    ├── ContentUnavailable   an adapter's files are missing or damaged
    ├── RegistryUnavailable  the registry's database does not answer: no changes now
    └── StoreUnavailable     a hub, a store or a registry does not answer
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

MAX_MESSAGE_CHARACTERS = 1000


def shortened(message: str) -> str:
    """Return a message as it is or, if it lists very much, its beginning and how much is left."""
    if len(message) <= MAX_MESSAGE_CHARACTERS:
        return message
    kept = MAX_MESSAGE_CHARACTERS - 40
    return f"{message[:kept]} … and {len(message) - kept:,} characters more"


class APIError(Exception):
    """Base of all errors for clients. `message` says what is wrong and what to do."""

    status = 500
    type = "server_error"
    code = "internal_error"

    def __init__(self, message: str, *, param: str | None = None, **extra: Any) -> None:
        message = shortened(message)
        super().__init__(message)
        self.message, self.param, self.extra = message, param, extra

    @property
    def headers(self) -> dict[str, str]:
        """Headers that go with the answer."""
        return {}


class InvalidRequest(APIError):
    """The request cannot be understood or has a value that is not allowed."""

    status, type, code = 400, "invalid_request_error", "invalid_request"


class ContextTooLong(InvalidRequest):
    """A prompt, or a prompt with its answer, that the model's context cannot hold."""

    code = "context_length_exceeded"


class SchemaTooComplex(InvalidRequest):
    """A schema, regex or grammar would take too long to compile."""

    code = "schema_too_complex"


class Unauthenticated(APIError):
    """The request has no key, or one that is not valid."""

    status, type, code = 401, "invalid_request_error", "invalid_api_key"

    def __init__(self, message: str, *, reason: str = "unknown", param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.reason = reason
        """`missing`, `unknown`, `revoked` or `expired`: for logs and metrics, not for clients."""

    @property
    def headers(self) -> dict[str, str]:
        return {"www-authenticate": "Bearer"}


class Forbidden(APIError):
    """The key is valid, but lacks the scope."""

    status, type, code = 403, "permission_error", "insufficient_scope"


class NotFound(APIError):
    """There is no such route or record."""

    status, type, code = 404, "invalid_request_error", "not_found"


class ModelNotFound(NotFound):
    """The `model` names nothing that this caller may use."""

    code = "model_not_found"


class ModelIncompatible(ModelNotFound):
    """A version that this server doesn't offer: for its base, or for its limit of ranks.

    The status is not 409, because OpenAI's clients repeat that one.
    """

    code = "model_incompatible"


class Conflict(APIError):
    """The present state does not allow the request."""

    status, type, code = 409, "invalid_request_error", "conflict"


class ChangedMeanwhile(APIError):
    """A precondition (`If-Match`) does not hold."""

    status, type, code = 412, "invalid_request_error", "changed_meanwhile"


class TooLarge(APIError):
    """An upload is over the limit."""

    status, type, code = 413, "invalid_request_error", "too_large"


class Rejected(APIError):
    """An adapter cannot work on this base."""

    status, type, code = 422, "invalid_request_error", "adapter_rejected"


class OverQuota(APIError):
    """There are too many requests or tokens, a minute or at a time. The client has to wait."""

    status, type, code = 429, "rate_limit_error", "rate_limit_exceeded"

    def __init__(
        self,
        message: str,
        *,
        retry_after_seconds: int,
        rate_headers: Mapping[str, str] | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(message, param=param)
        self.retry_after_seconds, self.rate_headers = retry_after_seconds, rate_headers or {}

    @property
    def headers(self) -> dict[str, str]:
        return {"retry-after": str(max(1, self.retry_after_seconds)), **self.rate_headers}


class NeverFits(OverQuota):
    """One request is larger than the whole quota. The client has to make it smaller."""

    def __init__(self, message: str, *, rate_headers: Mapping[str, str], param: str) -> None:
        super().__init__(message, retry_after_seconds=0, rate_headers=rate_headers, param=param)

    @property
    def headers(self) -> dict[str, str]:
        return {"x-should-retry": "false", **self.rate_headers}


class QuotaExceeded(APIError):
    """Too many adapters, or bytes of them: retire some, or have the quota raised."""

    status, type, code = 429, "rate_limit_error", "insufficient_quota"

    @property
    def headers(self) -> dict[str, str]:
        return {"x-should-retry": "false"}  # OpenAI's clients would try again


class ClientWentAway(APIError):
    """The client closed the connection. The status is nginx's. Only logs and metrics show it."""

    status, type, code = 499, "invalid_request_error", "client_went_away"


class Unavailable(APIError):
    """The engine, or this adapter in it, cannot answer now. The client should try again later."""

    status, type, code = 503, "service_unavailable_error", "engine_unavailable"

    def __init__(self, message: str, *, retry_after_seconds: int = 5, **extra: Any) -> None:
        super().__init__(message, **extra)
        self.retry_after_seconds = retry_after_seconds

    @property
    def headers(self) -> dict[str, str]:
        return {"retry-after": str(self.retry_after_seconds)}


class Suspended(Unavailable):
    """An adapter, or the tenant of the request or of the adapter, is suspended."""

    code = "suspended"

    @property
    def headers(self) -> dict[str, str]:
        return {**super().headers, "x-should-retry": "false"}  # it may last for days


class NotServing(Unavailable):
    """This server starts, restarts or shuts down. Another one may answer now.

    Proxies repeat a request on another server only if they see this error's header. To repeat what
    an overloaded server refuses would multiply the load.
    """

    @property
    def headers(self) -> dict[str, str]:
        return {**super().headers, "x-loraplex-elsewhere": "1"}


class NotLoadable(Unavailable):
    """The engine is well, and refuses this adapter's weights."""


class SlotTimeout(Unavailable):
    """All slots stayed busy with other adapters for as long as a request may wait."""

    code = "slot_timeout"


class Preempted(Unavailable):
    """The request was ended to give its slot to another tenant, which was below its share."""

    code = "preempted"


class Overloaded(Unavailable):
    """There is no memory for more request bodies now."""

    code = "overloaded"


class ContentUnavailable(Unavailable):
    """An adapter's files are missing or damaged here, and no origin has them."""

    code = "content_unavailable"


class RegistryUnavailable(Unavailable):
    """The registry's database does not answer. Known adapters are still served."""

    code = "registry_unavailable"


class StoreUnavailable(Unavailable):
    """A hub, a store or a registry does not answer, or refuses the server."""

    code = "store_unavailable"


class TookTooLong(APIError):
    """The request ran for as long as one may (`LORAPLEX_REQUEST_SECONDS`), and was ended."""

    status, type, code = 504, "timeout_error", "request_timeout"

    @property
    def headers(self) -> dict[str, str]:
        return {"x-should-retry": "false"}  # it would take as long again


class InsufficientStorage(APIError):
    """The disk, or the budget for it, is full."""

    status, type, code = 507, "server_error", "insufficient_storage"


REASONS_IN_MESSAGE = 3
"""How many of a rejection's reasons its message repeats."""


def error_response(error: APIError, path: str) -> JSONResponse:
    """Render an error in OpenAI's shape, or below /v1/messages with Anthropic's types."""
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
        body["error"]["type"] = _anthropic_type(error.status)
    return JSONResponse(body, status_code=error.status, headers=error.headers)


def _anthropic_type(status: int) -> str:
    server_error = "overloaded_error" if status == Unavailable.status else "api_error"
    client_error = "invalid_request_error"
    return _ANTHROPIC_TYPES.get(status, server_error if status >= 500 else client_error)


_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
}
"""Anthropic's names, by status."""


def rejected(reasons: list[dict[str, Any]]) -> Rejected:
    """Return the error, a 422, for an adapter that the gate rejected."""
    texts = [str(reason["message"]) for reason in reasons]
    left_out = len(texts) - REASONS_IN_MESSAGE
    more = [f"and {left_out} more in `reasons`"] if left_out > 0 else []
    text = "; ".join([*texts[:REASONS_IN_MESSAGE], *more])
    return Rejected(f"the adapter can't work on this base: {text}", reasons=reasons)
