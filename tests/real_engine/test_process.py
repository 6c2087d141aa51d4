"""The life of a server process, told once from start to end on engines of its own."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from server.process.demo import DEMO_DIR
from tests.real_engine.running_server import RunningServer

HELLO = [{"role": "user", "content": "Tell me a long story."}]


def ask(server: RunningServer, model: str = "smart-home", **options: object):  # type: ignore[no-untyped-def]
    return server.client().chat.completions.create(
        model=model,
        messages=HELLO,
        **{"max_tokens": 1, **options},  # type: ignore[call-overload]
    )


def wait_for(condition, seconds: float) -> float:  # type: ignore[no-untyped-def]
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, "it did not happen in time"
        time.sleep(0.02)
    return time.monotonic() - started


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("process") / "var"


@pytest.fixture
def own_server(data_dir: Path) -> Iterator[RunningServer]:
    server = RunningServer(data_dir)
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.stop()


def test_sigterm_lets_open_streams_finish_and_leaves_nothing(own_server: RunningServer) -> None:
    server = own_server
    environment = {**os.environ, "LORAPLEX_URL": server.url, "LORAPLEX_API_KEY": server.key}
    loraplex = str(Path(sys.executable).with_name("loraplex"))
    command = [loraplex, "adapters", "register", "smart-home", str(DEMO_DIR / "smart-home")]
    registered = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True
    )
    assert "default/smart-home@1 is ready" in registered.stdout
    stream = ask(server, stream=True, max_tokens=150, extra_body={"ignore_eos": True})
    chunks = iter(stream)
    next(chunks)
    engines = server.engine_processes()
    assert engines
    server.process.send_signal(signal.SIGTERM)
    wait_for(lambda: server.status("/readyz") == 503, 5)
    assert server.status("/livez") == 200
    rest = list(chunks)
    assert rest[-1].choices[0].finish_reason == "length", "the open stream was cut off"
    assert server.process.wait(30) == 0
    _, alive = psutil.wait_procs(engines, timeout=1)
    assert not alive


def test_restart_keeps_the_registry_and_a_dead_engine_comes_back(
    own_server: RunningServer,
) -> None:
    server = own_server
    assert ask(server).model == "default/smart-home@1"
    failures: list[Exception] = []

    def stream_until_the_end() -> None:
        try:
            list(ask(server, stream=True, max_tokens=4000, extra_body={"ignore_eos": True}))
        except Exception as error:
            failures.append(error)

    open_stream = threading.Thread(target=stream_until_the_end)
    open_stream.start()
    time.sleep(1)
    os.kill(server.engine_processes()[0].pid, signal.SIGKILL)
    noticed = wait_for(lambda: server.status("/readyz") == 503, 5)
    assert noticed < 2, "a dead engine was noticed too late"
    response = server.admin(
        "POST", "/v1/chat/completions", json={"model": "base", "messages": HELLO}
    )
    assert response.status_code == 503
    assert "retry-after" in response.headers
    assert server.status("/livez") == 200
    open_stream.join(10)
    assert not open_stream.is_alive(), "a stream hung on the dead engine"
    assert failures, "a stream cut off by the engine's death looked complete"
    server.wait_until_ready()
    assert ask(server).model == "default/smart-home@1"
    assert "loraplex_engine_starts_total 2.0" in server.admin("GET", "/metrics").text
    engines = server.engine_processes()
    server.process.kill()
    server.process.wait(10)
    _, alive = psutil.wait_procs(engines, timeout=5)
    assert not alive, "the engine survived its server"


@pytest.mark.parametrize("seconds", [0.5, 12])
def test_ctrl_c_while_starting_ends_it_at_once(tmp_path: Path, seconds: float) -> None:
    server = RunningServer(tmp_path / "var")
    try:
        wait_for(lambda: server.status("/livez") == 200, 60)
        time.sleep(seconds)
        server.process.send_signal(signal.SIGINT)
        children = psutil.Process(server.process.pid).children(recursive=True)
        assert server.process.wait(8) == 0
        _, alive = psutil.wait_procs(children, timeout=5)
        assert not alive
    finally:
        server.stop()


def test_an_engine_that_cannot_start_ends_the_process_with_code_1(tmp_path: Path) -> None:
    result = run_serve("--max-model-len", "100000", "--port", "0", "--data-dir", str(tmp_path))
    assert result.returncode == 1
    assert "can't be started" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_data_folder_belongs_to_one_server(server: RunningServer) -> None:
    result = run_serve("--port", "0", "--data-dir", str(server.data_dir))
    assert result.returncode == 2
    assert "another server uses" in result.stderr


def run_serve(*flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    loraplex = str(Path(sys.executable).with_name("loraplex"))
    return subprocess.run(
        [loraplex, "serve", *flags],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("flags", "environment", "message"),
    [
        (["--base", "/does/not/exist"], {}, "LORAPLEX_BASE"),
        ([], {"LORAPLEX_PORT": "eighty"}, "LORAPLEX_PORT"),
        (["--port", "eighty"], {}, "LORAPLEX_PORT"),
        ([], {"LORAPLEX_PROT": "8000"}, "did you mean LORAPLEX_PORT"),
        (["--data-dir", "/dev/null/var"], {}, "LORAPLEX_DATA_DIR"),
        (["--max-num-sequences", "8"], {}, "did you mean --max-num-seqs"),
    ],
)
def test_bad_settings_are_one_line_and_code_2(
    tmp_path: Path, flags: list[str], environment: dict[str, str], message: str
) -> None:
    defaults = {"LORAPLEX_DATA_DIR": str(tmp_path / "var"), "LORAPLEX_PORT": "0"}
    result = run_serve(*flags, **(defaults | environment))
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_port_in_use_is_one_line_and_code_2(server: RunningServer, tmp_path: Path) -> None:
    result = run_serve("--data-dir", str(tmp_path / "var"), "--port", str(server.port))
    assert result.returncode == 2
    assert "LORAPLEX_PORT" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
