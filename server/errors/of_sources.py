"""Errors of adapters whose source or signature isn't trusted, and of sources in requests."""

from __future__ import annotations

from server.errors import APIError, Forbidden, Unavailable


class SourceNotAllowed(Forbidden):
    """The tenant's policy lets no request name this source."""

    code = "source_not_allowed"


class SignatureRefused(APIError):
    """The files have no signature that the tenant's policy trusts, or are not what was signed."""

    status, type, code = 422, "invalid_request_error", "signature_refused"


class SourcePending(Unavailable):
    """The source that a request names is still being fetched and checked, which goes on."""

    code = "source_pending"
