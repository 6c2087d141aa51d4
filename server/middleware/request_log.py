"""ASGI middleware that counts each answered request, and records what became of it."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.metrics import REQUESTS, adapter_label, tenant_label
from server.middleware.authentication import OPEN_PATHS, is_of_console
from server.request_log.lines import RequestLines
from server.request_log.recent import RecentRequests
from server.request_log.record import RequestRecord, current_record

MAX_PATH_CHARACTERS = 200
"""Of a path, so much is kept; a client may send one of 64 kB."""


class RequestLog:
    """ASGI middleware: counts, records and logs requests.

    Probes, scrapes and looking at the console are counted only.
    """

    def __init__(self, app: ASGIApp, recent: RecentRequests, lines: RequestLines) -> None:
        self.app, self._recent, self._lines = app, recent, lines

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

        async def watch(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                record.complete = True

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
    record.version = state.get("version")
    if lease := state.get("lease"):
        record.tier = lease.tier.value


def _count(record: RequestRecord, scope: Scope) -> None:
    route = scope.get("route")
    REQUESTS.labels(
        tenant=tenant_label(record.tenant) if record.tenant else "",
        adapter=adapter_label(record.model),
        endpoint=scope.get("root_path", "") + route.path if route else "unknown",
        code=str(record.status),
    ).inc()
