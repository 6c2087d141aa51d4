"""An HTTP server before an S3 server. It spoils answers as stores and proxies do."""

from __future__ import annotations

import enum
import http.client
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

SLOW_SECONDS = 2.0


class Mood(enum.StrEnum):
    WELL = "well"
    SLOW = "slow"
    """Every answer comes two seconds late."""
    FAILING = "failing"
    """Every answer is a 500."""
    WRONG_BYTES = "wrong bytes"
    """One byte of every file that is read is another one."""
    TRUNCATED = "truncated"
    """A file that is read ends early, and its length says so, too."""
    BROKEN_OFF = "broken off"
    """The connection ends in the middle of a file that is read."""


class BadBucket:
    """Passes on what comes to `url`, spoilt as `mood` says."""

    def __init__(self, behind: str) -> None:
        self.mood = Mood.WELL
        address = urlsplit(behind)
        bucket = self

        class Handler(_Handler):
            def do_GET(self) -> None:
                self.pass_on(bucket, address.hostname or "", address.port or 80)

            do_PUT = do_POST = do_DELETE = do_HEAD = do_GET

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def pass_on(self, bucket: BadBucket, host: str, port: int) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if bucket.mood is Mood.SLOW:
            time.sleep(SLOW_SECONDS)
        if bucket.mood is Mood.FAILING:
            self._answer(500, [], b"")
            return
        backend = http.client.HTTPConnection(host, port, timeout=60)
        # The signature is over the headers as the client sent them, `Host` among them.
        backend.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            backend.putheader(name, value)
        backend.endheaders(body)
        answer = backend.getresponse()
        content, status = answer.read(), answer.status
        backend.close()
        headers = answer.getheaders()
        is_file = self.command == "GET" and "/sha256/" in self.path.partition("?")[0]
        if is_file and status in (200, 206) and content:
            content = _spoilt(content, bucket.mood)
        self._answer(
            status, headers, content, breaks_off=is_file and bucket.mood is Mood.BROKEN_OFF
        )

    def _answer(
        self,
        status: int,
        headers: list[tuple[str, str]],
        content: bytes,
        *,
        breaks_off: bool = False,
    ) -> None:
        self.send_response_only(status)
        of_connection = ("content-length", "transfer-encoding", "connection")
        length = str(len(content))
        for name, value in headers:
            if self.command == "HEAD" and name.lower() == "content-length":
                length = value
            if name.lower() not in of_connection:
                self.send_header(name, value)
        self.send_header("content-length", length)
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if breaks_off else content)
        self.close_connection = breaks_off

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def _spoilt(content: bytes, mood: Mood) -> bytes:
    middle = len(content) // 2
    if mood is Mood.WRONG_BYTES:
        return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    return content[:middle] if mood is Mood.TRUNCATED else content
