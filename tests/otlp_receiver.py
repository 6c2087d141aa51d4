"""A collector for tests: receives OTLP over HTTP and keeps the spans."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


class Receiver:
    """The spans that arrived, and where to send them."""

    def __init__(self, port: int) -> None:
        self.endpoint = f"http://127.0.0.1:{port}"
        self._spans: list[Any] = []

    def add(self, content: bytes) -> None:
        request = ExportTraceServiceRequest.FromString(content)
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self._spans.extend(scope.spans)

    def trace(self, trace_id: str, *names: str, seconds: float = 30) -> dict[str, Any]:
        """Return a trace's spans by name, once all of these names are there."""
        deadline = time.monotonic() + seconds
        while True:
            spans = {s.name: s for s in self._spans if s.trace_id.hex() == trace_id}
            if set(names) <= set(spans):
                return spans
            assert time.monotonic() < deadline, f"only {sorted(spans)} arrived"
            time.sleep(0.05)


def attributes(span: Any) -> dict[str, Any]:
    """Return a span's attributes as Python values."""
    return {each.key: _value(each.value) for each in span.attributes}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]
    return getattr(value, kind)


@contextmanager
def otlp_receiver() -> Iterator[Receiver]:
    """Run a collector on 127.0.0.1."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            receiver.add(self.rfile.read(int(self.headers["content-length"])))
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    receiver = Receiver(server.server_port)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
