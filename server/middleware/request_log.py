"""ASGI middleware that counts each answered request, and records what became of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.metrics import REQUESTS, adapter_label, tenant_label
from server.middleware.authentication import OPEN_PATHS, is_of_console
from server.request_log.lines import RequestLines
from server.request_log.recent import RecentRequests
from server.request_log.record import RequestRecord, current_record
from server.tracing.traces import Traces

MAX_PATH_CHARACTERS = 200
"""Of a path, so much is kept; a client may send one of 64 kB."""


class RequestLog:
    """ASGI middleware: counts, records, logs and traces requests.

    Probes, scrapes and looking at the console are counted only.
    """

    def __init__(
        self,
        app: ASGIApp,
        recent: RecentRequests,
        lines: RequestLines,
        traces: Traces | None = None,
        note_arm: Callable[[RequestRecord], None] | None = None,
    ) -> None:
        """`traces`: where requests are traced; None if they are not.

        `note_arm` is called with each request that a split of `live` dealt.
        """
        self.app, self._recent, self._lines, self._traces = app, recent, lines, traces
        self._note_arm = note_arm

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        record = RequestRecord(
            request_id=state.get("request_id", ""),
            method=scope["method"],
            path=scope["path"][:MAX_PATH_CHARACTERS],
        )

        async def end(message: Message) -> None:
            await send(message)
            record.complete = True

        # No coroutine of its own: a streamed answer has a message for each token.
        def watch(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                record.status = message["status"]
            elif message["type"] == "http.response.body" and not message.get("more_body"):
                return end(message)
            return send(message)

        trace = None
        if self._traces and not _is_looking(record):
            trace, scope["headers"] = self._traces.begin(record, scope["headers"])
        before = current_record.set(record)
        try:
            await self.app(scope, receive, watch)
        except Exception:
            record.status = 500
            raise
        finally:
            current_record.reset(before)
            record.end_stage("sent")
            _fill(record, scope)
            _count(record, scope)
            if record.arm and self._note_arm:
                self._note_arm(record)
            if trace:
                trace.end(record, _route(scope))
            if not _is_looking(record):
                if record.tenant_id:  # whoever has no key must not push out others' records
                    self._recent.add(record)
                self._lines.write(record)


def _is_looking(record: RequestRecord) -> bool:
    is_read = record.method in ("GET", "HEAD")
    return record.path in OPEN_PATHS or (is_read and is_of_console(record.path))


def _fill(record: RequestRecord, scope: Scope) -> None:
    """Take from the request's state what the steps on its way found out."""
    state = scope["state"]
    if caller := state.get("caller"):
        record.tenant, record.tenant_id = caller.tenant, caller.tenant_id
        record.key_id = caller.key_id
    record.model = state.get("adapter", "")
    record.version, record.arm = state.get("version"), state.get("arm")
    if lease := state.get("lease"):
        record.tier = lease.tier.value


def _count(record: RequestRecord, scope: Scope) -> None:
    REQUESTS.labels(
        tenant=tenant_label(record.tenant) if record.tenant else "",
        adapter=adapter_label(record.model),
        endpoint=_route(scope),
        code=str(record.status),
    ).inc()


def _route(scope: Scope) -> str:
    """Return the route's path with its parameters' names, or `unknown`."""
    route = scope.get("route")
    return f"{scope.get('root_path', '')}{route.path}" if route else "unknown"
