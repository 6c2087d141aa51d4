"""While the server imports, another process answers on its sockets."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from server.process.early_answers import EarlyAnswers
from server.process.serve import Stopwatch

WAIT = 20


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def url_of(listener: socket.socket) -> str:
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_livez_is_answered_and_the_rest_is_told_when_to_come_back(listener: socket.socket) -> None:
    url = url_of(listener)
    with EarlyAnswers([listener]):
        live = httpx.get(f"{url}/livez", timeout=WAIT)
        assert (live.status_code, live.text) == (200, "ok\n")
        assert httpx.head(f"{url}/livez", timeout=WAIT).status_code == 200
        for path in ("/readyz", "/startupz", "/v1/models", "/admin/tenants"):
            answer = httpx.get(url + path, timeout=WAIT, headers={"x-request-id": "mine"})
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) > 0
            assert answer.headers["connection"] == "close"
            assert answer.headers["x-request-id"] == "mine"
            assert answer.headers["x-loraplex-elsewhere"] == "1", "a proxy may try another server"
            assert answer.json()["error"]["code"] == "engine_unavailable"
        anthropic = httpx.post(f"{url}/v1/messages", content=b"x" * 100_000, timeout=WAIT)
        assert (anthropic.status_code, anthropic.json()["type"]) == (503, "error")


def test_no_connection_is_refused_when_the_server_takes_over(listener: socket.socket) -> None:
    with EarlyAnswers([listener]) as early:
        assert httpx.get(f"{url_of(listener)}/livez", timeout=WAIT).status_code == 200
        early.hand_over()
        with socket.create_connection(listener.getsockname(), timeout=WAIT) as client:
            listener.settimeout(WAIT)
            accepted, _ = listener.accept()
            with accepted:
                client.sendall(b"x")
                assert accepted.recv(1) == b"x", "somebody else has accepted it"


def test_each_socket_is_answered(listener: socket.socket) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, EarlyAnswers([listener, other]):
        for each in (listener, other):
            assert httpx.get(f"{url_of(each)}/livez", timeout=WAIT).status_code == 200


PROGRAM = """
import socket, sys, time
from server.process.early_answers import EarlyAnswers
from server.process.signals import ending_at_once

with ending_at_once(), socket.create_server(("127.0.0.1", 0)) as listener, EarlyAnswers([listener]):
    print(listener.getsockname()[1], flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 0), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_it_ends_with_its_server(number: int, code: int) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], env=environment, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        assert httpx.get(f"http://127.0.0.1:{port}/livez", timeout=WAIT).status_code == 200
        children = psutil.Process(server.pid).children(recursive=True)
        assert children
        server.send_signal(number)
        assert server.wait(WAIT) == code
        _, alive = psutil.wait_procs(children, timeout=WAIT)
        assert not alive
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"http://127.0.0.1:{port}/livez", timeout=WAIT)


def test_the_seconds_of_a_start_add_up() -> None:
    times = iter([100.0, 101.0, 103.5, 104.0])
    stopwatch = Stopwatch(lambda: next(times))
    for phase in ("prepare", "imports", "engine"):
        stopwatch.end(phase)
    assert stopwatch.summary() == "4.0 s (prepare 1.0, imports 2.5, engine 0.5)"


def test_the_command_imports_little_before_it_answers() -> None:
    """What is slow to import comes after the port is bound."""
    program = "import sys, server.cli.main, server.process.serve; print(*sorted(sys.modules))"
    ran = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
        capture_output=True,
        text=True,
        check=True,
    )
    imported = {module.split(".")[0] for module in ran.stdout.split()}
    slow = {"torch", "vllm", "transformers", "fastapi", "sqlalchemy", "alembic", "numpy", "httpx"}
    assert not imported & (slow | {"obstore", "opentelemetry", "prometheus_client", "jinja2"})
