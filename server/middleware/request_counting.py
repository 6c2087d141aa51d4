"""ASGI middleware that counts answered requests."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.metrics import REQUESTS, adapter_label, tenant_label


class RequestCounting:
    """ASGI middleware: counts each answered request, and those of inference still running."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 499  # nginx's code for "the client went away", if nothing is sent

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watch)
        except Exception:
            status = 500
            raise
        finally:
            state = scope.get("state", {})
            caller, route = state.get("caller"), scope.get("route")
            REQUESTS.labels(
                tenant=tenant_label(caller.tenant) if caller else "",
                adapter=adapter_label(state.get("adapter", "")),
                endpoint=route.path if route else "unknown",
                code=str(status),
            ).inc()
