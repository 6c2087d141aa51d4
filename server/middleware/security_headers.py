"""Headers that keep browsers from treating an answer as something that it is not."""

from __future__ import annotations

from collections.abc import Awaitable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"content-security-policy", b"frame-ancestors 'none'; base-uri 'none'; form-action 'none'"),
    (b"referrer-policy", b"no-referrer"),
]
"""After OWASP's list of secure headers; HTTPS, and its header, is the proxy's in front."""


class SecurityHeaders:
    """ASGI middleware that adds the headers to every answer that does not set them itself."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # No coroutine of its own: a streamed answer has a message for each token.
        def secured(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                given = {name.lower() for name, _ in message["headers"]}
                more = [header for header in HEADERS if header[0] not in given]
                message = {**message, "headers": [*message["headers"], *more]}
            return send(message)

        await self.app(scope, receive, secured)
