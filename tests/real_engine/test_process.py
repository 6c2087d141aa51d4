"""The life of a server process, told once from start to end.

One server goes through most of it, test by test: its engine dies, its engine hangs, it is ended,
and it is started again on the same data folder with another base.
"""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from shutil import copytree

import httpx
import openai
import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from adapters_registry.content.adapter_files import ADAPTER_FILES
from server.bundled_base import ensure_bundled_base
from server.process.demo import DEMO_DIR
from tests.real_engine.running_server import RunningServer

NAME, VERSION = "smart-home", "default/smart-home@1"
HANG_SECONDS = 10
QUESTION = {"model": "base", "prompt": "Once", "max_tokens": 200, "ignore_eos": True}
HELLO = [{"role": "user", "content": "Tell me a long story."}]


def ask(server: RunningServer, model: str = NAME, **options: object):  # type: ignore[no-untyped-def]
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
def temporary() -> Iterator[Path]:
    """The server's folder for temporary files. Pytest's own are too deep for vLLM's sockets."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def own_server(
    tmp_path_factory: pytest.TempPathFactory, temporary: Path
) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("process")
    server = RunningServer(
        folder / "var",
        *("--hang-seconds", str(HANG_SECONDS)),
        environment={**os.environ, "TMPDIR": str(temporary)},
    )
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def registered(own_server: RunningServer) -> RunningServer:
    """The server with an adapter."""
    server = own_server
    environment = {**os.environ, "LORAPLEX_URL": server.url, "LORAPLEX_API_KEY": server.key}
    loraplex = str(Path(sys.executable).with_name("loraplex"))
    command = [loraplex, "adapters", "register", NAME, str(DEMO_DIR / NAME)]
    registered = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True
    )
    assert "default/smart-home@1 is ready" in registered.stdout
    return server


def test_a_data_folder_belongs_to_one_server(own_server: RunningServer) -> None:
    result = run_serve("--port", "0", "--data-dir", str(own_server.data_dir))
    assert result.returncode == 2
    assert "another server uses" in result.stderr


def test_a_port_in_use_is_one_line_and_code_2(own_server: RunningServer, tmp_path: Path) -> None:
    result = run_serve("--data-dir", str(tmp_path / "var"), "--port", str(own_server.port))
    assert result.returncode == 2
    assert "LORAPLEX_PORT" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def num_starts(server: RunningServer) -> int:
    """How often the engine was started. The page is made once a second."""
    time.sleep(1.1)
    lines = server.admin("GET", "/metrics").text.splitlines()
    (line,) = [line for line in lines if line.startswith("loraplex_engine_starts_total ")]
    return int(float(line.rpartition(" ")[2]))


def test_a_dead_engine_comes_back(registered: RunningServer) -> None:
    server, failures = registered, list[Exception]()
    before = num_starts(server)

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
    assert ask(server).model == VERSION
    assert num_starts(server) == before + 1


async def test_an_engine_that_stands_still_is_restarted(registered: RunningServer) -> None:
    """Until then requests wait; none waits for ever, and all get a 503."""
    server = registered
    before = await asyncio.to_thread(num_starts, server)
    await stop_and_ask(server)
    await asyncio.to_thread(server.wait_until_ready)
    answer = server.admin("POST", "/v1/completions", json={**QUESTION, "max_tokens": 3})
    assert answer.json()["usage"]["completion_tokens"] == 3
    assert await asyncio.to_thread(num_starts, server) == before + 1
    assert f"it hung: no step ended and no call was answered for {HANG_SECONDS} s" in (
        server.log.read_text()
    )


async def stop_and_ask(server: RunningServer) -> None:
    """Stop the engine's process; return once the server has given it up."""
    [engine] = server.engine_processes()
    headers = {"Authorization": f"Bearer {server.key}"}
    question = {**QUESTION, "stream": True}
    async with (
        httpx.AsyncClient(base_url=server.url, headers=headers, timeout=120) as client,
        client.stream("POST", "/v1/completions", json=question) as answer,
    ):
        lines = answer.aiter_lines()
        await anext(lines)
        os.kill(engine.pid, signal.SIGSTOP)
        rest = asyncio.create_task(collect(lines))
        waiting = [
            asyncio.create_task(client.post("/v1/completions", json=QUESTION)) for _ in range(3)
        ]
        await asyncio.sleep(1)
        assert engine.status() == psutil.STATUS_STOPPED
        assert (await client.get("/livez")).status_code == 200
        while (ready := await client.get("/readyz")).status_code == 200:
            await asyncio.sleep(0.5)  # a step may have ended just before
        assert ready.status_code == 503
        for refused in await asyncio.gather(*waiting):
            assert refused.status_code == 503, refused.text
            assert refused.json()["error"]["code"] == "engine_unavailable"
            assert int(refused.headers["retry-after"]) >= 1
        assert '"error"' in await rest, "the open stream doesn't look complete"
        late = await client.post("/v1/completions", json=QUESTION)
        assert late.status_code == 503, "a request in the meantime is refused at once"
    _, alive = await asyncio.to_thread(psutil.wait_procs, [engine], timeout=60)
    assert not alive, "the process that stood still was not killed"


async def collect(lines: object) -> str:
    """Join what is left of a stream, also one that is cut off."""
    text = ""
    with suppress(httpx.HTTPError):
        async for line in lines:  # type: ignore[attr-defined]
            text += line
    return text


def test_sigterm_lets_open_streams_finish_and_leaves_nothing(
    registered: RunningServer, temporary: Path
) -> None:
    server = registered
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
    assert not [path for path in temporary.rglob("*") if path.is_socket()]


def test_the_next_start_keeps_the_registry_and_asks_on_which_base_a_version_was_checked(
    registered: RunningServer, tmp_path: Path
) -> None:
    """The next base has the same shapes and other weights."""
    registered.stop()
    other = other_base(tmp_path / "OtherModel-135M")
    server = RunningServer(registered.data_dir, "--base", str(other))
    try:
        server.wait_until_ready()
        assert models(server) == {"base"}
        with pytest.raises(openai.NotFoundError, match=r"checked on the base .* OtherModel-135M"):
            ask(server)
        files = [("files", (name, (DEMO_DIR / NAME / name).read_bytes())) for name in ADAPTER_FILES]
        path = "/admin/adapters?wait=true"
        again = server.admin("POST", path, data={"name": NAME}, files=files)
        assert again.status_code == 422
        assert [r["code"] for r in again.json()["error"]["reasons"]] == ["base_mismatch"]
        recheck = f"/admin/adapters/default/{NAME}/recheck?wait=true"
        checked = server.admin("POST", recheck, json={"allow_base_mismatch": True})
        assert [version["state"] for version in checked.json()["data"]] == ["ready"]
        assert models(server) == {"base", NAME}
        assert ask(server).model == VERSION
        assert "loraplex adapters recheck --all" in server.log.read_text()
        engines = server.engine_processes()
        server.process.kill()
        server.process.wait(10)
        _, alive = psutil.wait_procs(engines, timeout=5)
        assert not alive, "the engine survived its server"
    finally:
        server.stop()


def other_base(directory: Path) -> Path:
    """The bundled base with a small change in each MLP weight: configuration and sizes stay."""
    copytree(ensure_bundled_base(), directory)
    file = directory / "model.safetensors"
    tensors, noise = load_file(file), torch.Generator().manual_seed(1)
    for name, tensor in tensors.items():
        if ".mlp." in name:
            factor = 1 + 0.01 * torch.randn(tensor.shape, generator=noise)
            tensors[name] = (tensor.float() * factor).bfloat16()
    save_file(tensors, file, metadata={"format": "pt"})
    return directory


def models(server: RunningServer) -> set[str]:
    return {model.id for model in server.client().models.list()}


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
    ("flags", "message"),
    [
        (["--base", "/does/not/exist"], "LORAPLEX_BASE"),
        (["--port", "eighty"], "LORAPLEX_PORT"),
        (["--data-dir", "/dev/null/var"], "LORAPLEX_DATA_DIR"),
        (["--max-num-sequences", "8"], "did you mean --max-num-seqs"),
    ],
)
def test_bad_settings_are_one_line_and_code_2(
    tmp_path: Path, flags: list[str], message: str
) -> None:
    """Each is refused at another time of the start; `test_settings.py` has more of them."""
    result = run_serve(*flags, LORAPLEX_DATA_DIR=str(tmp_path / "var"), LORAPLEX_PORT="0")
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
