"""A server of Loraplex as a proxy sees it: readiness, and answers that say who gave them."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256
    connections: frozenset[socket.socket] = frozenset()

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections |= {request}
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.connections -= {request}
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that `stop` ended."""


class StubServer:
    """On a free port of the loopback interface; `held` keeps answers back until it is set."""

    def __init__(self, name: str) -> None:
        self.name, self.overloaded = name, False
        self.leaving = self.draining = False
        """Not ready, but answering; then refusing as well."""
        self.has_another = False
        """A dedicated server whose version the adapter's name doesn't mean any more."""
        self.held = threading.Event()
        self.held.set()
        self.num_asked = 0
        """Requests that have arrived."""
        self.lock = threading.Lock()
        self.port = 0
        self.start()

    def start(self) -> None:
        """Listen, after `stop` on the same port."""
        self._http = _Server(("127.0.0.1", self.port), _handler(self))
        self.port = int(self._http.server_address[1])
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,))
        self._thread.start()

    def stop(self) -> None:
        """End every connection, as a process that is killed does, and refuse new ones."""
        self._http.shutdown()
        self._http.server_close()
        for connection in self._http.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._thread.join()


def _handler(stub: StubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(503 if stub.leaving or stub.draining else 200, {})

        def do_POST(self) -> None:
            length = int(self.headers["content-length"])
            body = self.rfile.read(length)
            with stub.lock:
                stub.num_asked += 1
            stub.held.wait(30)
            if stub.has_another:
                self._answer(404, {"error": {"code": "model_elsewhere"}}, elsewhere=True)
            elif stub.draining:
                self._answer(503, {"error": {"code": "engine_unavailable"}}, elsewhere=True)
            elif stub.overloaded:
                self._answer(503, {"error": {"code": "slot_timeout"}})
            else:
                forwarded = self.headers.get_all("x-forwarded-for", [])
                answer = {"server": stub.name, "num_bytes": len(body), "forwarded": forwarded}
                self._answer(200, answer)

        def _answer(self, status: int, body: dict[str, Any], *, elsewhere: bool = False) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            if elsewhere:
                self.send_header("x-loraplex-elsewhere", "1")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    return Handler
