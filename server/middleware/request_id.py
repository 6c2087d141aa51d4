"""ASGI middleware that gives every answer a request id, by which logs and clients can name it."""

from __future__ import annotations

import re
import uuid
from collections.abc import Awaitable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SANE = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class RequestId:
    """Takes the client's `x-request-id` if it is valid, or makes one, and adds it to every answer.

    The id is in the request's state, as `request_id`. Below /v1/messages the answer has it as
    `request-id` too, where Anthropic's clients look. The engine never sees it: a client must not
    be able to name another client's request there.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = request_id_of(Headers(scope=scope).get("x-request-id", ""))
        scope.setdefault("state", {})["request_id"] = request_id
        names = ["x-request-id"]
        if scope["path"].startswith("/v1/messages"):
            names.append("request-id")

        # No coroutine of its own: a streamed answer has a message for each token.
        def send_with_id(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name in names:
                    headers[name] = request_id
            return send(message)

        await self.app(scope, receive, send_with_id)


def request_id_of(given: str) -> str:
    """Return the client's id if it has 1 to 128 of the characters that ids have, else a new one."""
    return given if _SANE.fullmatch(given) else f"req-{uuid.uuid4().hex}"
