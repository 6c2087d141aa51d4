"""How large a request may be, and how slowly its body may arrive.

The body is counted as it arrives, because its length in the header may be wrong or missing.
"""

from __future__ import annotations

import asyncio
import time

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import InvalidRequest, error_response

_MIB = 1 << 20

MAX_BODY_MIB = 8
"""The limit for everything but uploads. A prompt of 128k tokens is half a MiB."""
UPLOAD_PATHS = frozenset({"/admin/adapters", "/console/register"})
FORM_OVERHEAD_BYTES = _MIB
MAX_HEADERS_KIB = 32
PAUSE_SECONDS = 30.0
LEAST_BYTES_A_SECOND = 16 * 1024


class BodyLimit:
    """ASGI middleware that refuses requests over the limits (413, 431) without reading the rest. It
    also refuses a body that pauses too long or arrives too slowly (408)."""

    def __init__(
        self, app: ASGIApp, max_upload_mib: int, pause_seconds: float = PAUSE_SECONDS
    ) -> None:
        """`pause_seconds`: how long a body may pause, and how long it may take in addition to the
        time for its size."""
        self.app, self.max_upload_mib, self.pause_seconds = app, max_upload_mib, pause_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADERS_KIB * 1024:
            error = InvalidRequest(f"the headers are over {MAX_HEADERS_KIB} KiB")
            error.status = 431
            await error_response(error, scope["path"])(scope, receive, send)
            return
        limit, num_bytes, complete = self._limit(scope), 0, False
        waited_seconds = 0.0

        async def limited() -> Message:
            nonlocal num_bytes, complete, waited_seconds
            if complete:  # now the client may be silent until the answer is complete
                return await receive()
            left = self.pause_seconds + num_bytes / LEAST_BYTES_A_SECOND - waited_seconds
            asked = time.monotonic()
            try:
                async with asyncio.timeout(min(left, self.pause_seconds)):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, "the body came too slowly: send it again") from None
            waited_seconds += time.monotonic() - asked
            complete = not message.get("more_body", False)
            num_bytes += len(message.get("body", b""))
            if num_bytes > limit:
                # An HTTPException passes through the framework's parsing as it is.
                raise HTTPException(413, f"the body is over {limit // _MIB} MiB")
            return message

        await self.app(scope, limited, send)

    def _limit(self, scope: Scope) -> int:
        content_type = dict(scope["headers"]).get(b"content-type", b"")
        if scope["path"] in UPLOAD_PATHS and content_type.startswith(b"multipart/form-data"):
            return self.max_upload_mib * _MIB + FORM_OVERHEAD_BYTES
        return MAX_BODY_MIB * _MIB
