"""Downloads that nobody waits for any more end, whatever the store does."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from adapters_registry.content.origin import Origin
from adapters_registry.content.stopping import GivenUp, stop_flag, wait_for
from adapters_registry.content.store import ContentStore

DIGEST = "ab" * 32
SIZE = 4 << 20
LONG_SECONDS = 60
"""Far more than a download that was given up takes."""


class StuckStore:
    """An S3-compatible store that has every file, and sends only the first half of each."""

    def __init__(self, *, silent: bool) -> None:
        """`silent`: it accepts connections and doesn't answer at all."""
        self.silent, self.asked, self.is_over = silent, threading.Event(), threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self.is_over.set()
        self._server.shutdown()
        self._server.server_close()


def _handler(store: StuckStore) -> type[BaseHTTPRequestHandler]:
    names = ("adapter_config.json", "adapter_model.safetensors")
    entries = "".join(
        f"<Contents><Key>x/sha256/{DIGEST}/{name}</Key><Size>{SIZE}</Size><ETag>1</ETag>"
        "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
        for name in names
    )
    listing = f"<ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>"

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(SIZE, b"")

        def do_GET(self) -> None:
            if "list-type" in self.path:
                self._answer(len(listing), listing.encode())
            else:
                self._answer(SIZE, bytes(SIZE // 2), status=206)
                store.asked.set()
                store.is_over.wait()

        def _answer(self, length: int, body: bytes, status: int = 200) -> None:
            if store.silent:
                store.asked.set()
                store.is_over.wait()
            self.send_response(status)
            self.send_header("Content-Length", str(length))
            self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
            self.send_header("ETag", '"1"')
            if status == 206:
                self.send_header("Content-Range", f"bytes 0-{length - 1}/{length}")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    return Handler


@pytest.fixture(params=[False, True], ids=["stops halfway", "says nothing"])
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[StuckStore]:
    store = StuckStore(silent=request.param)
    monkeypatch.setenv("AWS_ENDPOINT_URL", store.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    yield store
    store.stop()


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as threads:
        yield threads


def with_flag(flag: threading.Event, call: Callable[[str], Path]) -> Callable[[str], Path]:
    context = copy_context()
    context.run(stop_flag.set, flag)
    return lambda digest: context.run(call, digest)


def test_a_download_that_is_given_up_ends_and_leaves_nothing(
    store: StuckStore, threads: ThreadPoolExecutor, tmp_path: Path
) -> None:
    content = ContentStore(tmp_path, origin=Origin("s3://bucket/x"), budget_bytes=3 * SIZE)
    flag, second = threading.Event(), threading.Event()
    download = threads.submit(with_flag(flag, content.fetch), DIGEST)
    assert store.asked.wait(LONG_SECONDS)
    waiting = threads.submit(with_flag(second, content.fetch), DIGEST)
    second.set()
    with pytest.raises(GivenUp):
        waiting.result(LONG_SECONDS)
    assert not download.done(), "only the one that waited for the same files"
    flag.set()
    with pytest.raises(GivenUp):
        download.result(LONG_SECONDS)
    assert not list((tmp_path / "staging").iterdir())
    content.reserve(tmp_path / "staging" / "new", 3 * SIZE)  # the budget has all its room again


def test_what_is_not_given_up_goes_on() -> None:
    async def call() -> int:
        return 7

    assert wait_for(call) == 7
    context = copy_context()
    context.run(stop_flag.set, threading.Event())
    assert context.run(lambda: wait_for(call)) == 7
