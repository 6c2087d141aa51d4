"""Writes the request log: one line for each request, as JSON or for people."""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from logging.handlers import QueueHandler, QueueListener
from typing import Literal

from server.request_log.record import RequestRecord

Style = Literal["console", "json", "off"]

MAX_WAITING_LINES = 10_000
CLOSE_SECONDS = 2.0

_log = logging.getLogger("loraplex.requests")


class RequestLines:
    """Writes a line for each request, from a thread of its own.

    The event loop must not wait for the reader of the lines. If the reader stops, lines are
    dropped.
    """

    def __init__(self, style: Style, handler: logging.Handler | None = None) -> None:
        """`handler` writes the lines. By default they go to the standard error."""
        self._style = style
        self._listener: QueueListener | None = None
        self._lines: queue.Queue[logging.LogRecord] = queue.Queue(MAX_WAITING_LINES)
        if style == "off":
            return
        _log.handlers = [_Dropping(self._lines)]
        _log.propagate = False
        _log.setLevel(logging.INFO)
        self._listener = QueueListener(self._lines, handler or logging.StreamHandler())
        self._listener.start()

    def write(self, record: RequestRecord) -> None:
        """Write one request's line."""
        if self._listener:
            _log.info("%s", line_of(record, self._style))

    def close(self) -> None:
        """Write the waiting lines and end the thread. If the reader is stuck, lines are lost."""
        if self._listener:
            stopping = threading.Thread(
                target=_stop, args=(self._listener, self._lines), daemon=True
            )
            stopping.start()
            stopping.join(CLOSE_SECONDS)
            self._listener = None


def _stop(listener: QueueListener, lines: queue.Queue[logging.LogRecord]) -> None:
    """Wait until the queue has room for the listener's stop mark, and stop the listener."""
    while lines.full():
        time.sleep(0.02)
    listener.stop()


class _Dropping(QueueHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """Drop the line: the queue is full."""


def line_of(record: RequestRecord, style: Style) -> str:
    """Return a request's line without its end. Text from clients is escaped."""
    if style == "json":
        return json.dumps(record.as_json())
    version = "" if record.version is None else f"@{record.version}"
    model = f"{record.model}{version}" if record.model else "-"
    parts = [
        record.started_at.astimezone().isoformat(timespec="milliseconds"),
        str(record.status),
        record.method,
        json.dumps(record.path)[1:-1],
        model,
        f"{record.seconds:.3f}s",
    ]
    if "first_token" in record.ends:
        parts.append(f"first token {record.ends['first_token']:.3f}s")
    if record.input_tokens or record.output_tokens:
        parts.append(f"tokens {record.input_tokens}+{record.output_tokens}")
    if record.finish_reasons:
        parts.append(",".join(sorted(record.finish_reasons)))
    if record.service_tier not in ("", "default"):
        parts.append(f"service tier {record.service_tier}")
    if not record.complete:
        parts.append("cut off")
    parts += [f"tenant {record.tenant or '-'}", f"id {record.request_id}"]
    return " ".join(parts)
