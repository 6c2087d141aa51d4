"""From any exception to the error that a client sees.

The table of the registry's errors is the only one: every route and the residency use it.
"""

from __future__ import annotations

import logging
import sqlite3

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DataError, OperationalError
from starlette.exceptions import HTTPException

from adapters_registry import errors as registry_errors
from server import errors
from server.errors import APIError, InvalidRequest, error_response
from server.errors.missing_routes import message_for
from server.errors.of_sources import SignatureRefused
from server.errors.own_words import of_validator

log = logging.getLogger(__name__)

OF_THE_REGISTRY: dict[type[registry_errors.RegistryError], type[APIError]] = {
    registry_errors.NotFound: errors.NotFound,
    registry_errors.Conflict: errors.Conflict,
    registry_errors.KeyReused: errors.Conflict,
    registry_errors.QuotaExceeded: errors.QuotaExceeded,
    registry_errors.ChangedMeanwhile: errors.ChangedMeanwhile,
    registry_errors.InsufficientStorage: errors.InsufficientStorage,
    registry_errors.ContentUnavailable: errors.ContentUnavailable,
    registry_errors.SignatureRefused: SignatureRefused,
    registry_errors.StoreUnavailable: errors.StoreUnavailable,
    registry_errors.RegistryError: errors.InvalidRequest,
}
"""The client's error for each registry error. A class that is not listed gets that of its base."""


def install(app: FastAPI) -> None:
    """Register the one handler for our errors, the registry's and the framework's."""

    async def handle(request: Request, error: Exception) -> JSONResponse:
        api_error, request_id = (
            to_api_error(error),
            request.scope.get("state", {}).get("request_id", ""),
        )
        if isinstance(error, HTTPException) and error.status_code == 404:
            api_error = errors.NotFound(message_for(request.url.path))
        if isinstance(api_error, errors.InsufficientStorage):
            log.error(
                "%s refused (request %s): %s",
                request.url.path,
                request_id,
                api_error.message,
            )
        elif api_error.status >= 500 and not isinstance(api_error, errors.Unavailable):
            log.error(
                "%s failed (request %s)",
                request.url.path,
                request_id,
                exc_info=error.__cause__ or error,
            )
        response = error_response(api_error, request.url.path)
        if request_id:  # An error that nobody expected is answered outside of all middleware.
            response.headers["x-request-id"] = request_id
        return response

    for kind in (
        APIError,
        registry_errors.RegistryError,
        RequestValidationError,
        HTTPException,
        # Each class is registered by name. The framework raises an error that only `Exception`
        # matches again after the answer: the connection then ends and the whole trace is logged.
        OperationalError,
        Exception,
    ):
        app.add_exception_handler(kind, handle)


def to_api_error(error: Exception) -> APIError:
    """Return the client's view of any error. It tells nothing about the inside."""
    match error:
        case APIError():
            return error
        case registry_errors.RegistryError():
            return next(
                OF_THE_REGISTRY[kind](str(error), param=error.param)
                for kind in type(error).__mro__
                if kind in OF_THE_REGISTRY
            )
        case OperationalError(orig=sqlite3.Error(sqlite_errorcode=sqlite3.SQLITE_FULL)):
            return errors.InsufficientStorage(
                "the disk of LORAPLEX_DATA_DIR is full: free space there, then try again"
            )
        case OperationalError():
            return errors.RegistryUnavailable(
                "the registry's database doesn't answer, so nothing can be changed or listed now; "
                "adapters go on serving. Try again"
            )
        case DataError() | UnicodeEncodeError():
            return InvalidRequest(
                "a value can't be kept: text may hold neither NUL nor half a surrogate pair, and a "
                "time must be before the year 10000"
            )
        case RequestValidationError():
            return _validation_error(error)
        case HTTPException():
            return _framework_error(error)
    return APIError("something went wrong inside; the server's log has the cause")


def _validation_error(error: RequestValidationError) -> APIError:
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return InvalidRequest(f"the body is not valid JSON: {first['ctx']['error']}")
    param = ".".join(str(part) for part in first["loc"] if part != "body") or None
    return InvalidRequest(f"{param or 'body'}: {of_validator(first['msg'])}", param=param)


def _framework_error(error: HTTPException) -> APIError:
    if error.status_code == 404:
        return errors.NotFound("there is no such route; /docs lists them")
    api_error = InvalidRequest(str(error.detail))
    api_error.status = error.status_code
    if error.status_code == errors.TooLarge.status:
        api_error.code = errors.TooLarge.code
    return api_error
