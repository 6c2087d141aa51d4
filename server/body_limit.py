"""How large a request's body may be, counted as it arrives: a header can lie, or be missing."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_MIB = 1 << 20

MAX_BODY_MIB = 8
"""For everything but uploads: a prompt of 128k tokens is half a MiB."""
UPLOAD_PATH = "/admin/adapters"
FORM_OVERHEAD_BYTES = _MIB


class BodyLimit:
    """ASGI middleware: a body over its limit is refused with 413 and not read to its end."""

    def __init__(self, app: ASGIApp, max_upload_mib: int) -> None:
        self.app, self.max_upload_mib = app, max_upload_mib

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit, num_bytes = self._limit(scope), 0

        async def limited() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > limit:
                # An HTTPException passes through the framework's parsing as it is.
                raise HTTPException(413, f"the body is over {limit // _MIB} MiB")
            return message

        await self.app(scope, limited, send)

    def _limit(self, scope: Scope) -> int:
        content_type = dict(scope["headers"]).get(b"content-type", b"")
        if scope["path"] == UPLOAD_PATH and content_type.startswith(b"multipart/form-data"):
            return self.max_upload_mib * _MIB + FORM_OVERHEAD_BYTES
        return MAX_BODY_MIB * _MIB
