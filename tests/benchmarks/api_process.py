"""CPU that the API process takes for each token, here and in vLLM's own server.

    python -m tests.benchmarks.api_process [--beside unseen]

Both servers run vLLM's handlers on the same stand-in for the engine process (`fake_core.py`), which
gives each stream a token at a fixed pace. Each is measured in turn, several times, while the other
one is idle. The last line is JSON.

`--beside unseen` compares this server with itself: the request log as JSON and every request traced
to a collector (`loraplex`), and neither (`unseen`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import uvloop

from tests.otlp_receiver import otlp_receiver

READY_SECONDS = 240


def serve(kind: str, port: int, folder: str, step_seconds: float, collector: str | None) -> None:
    """Run one server until it is killed. `collector`: where it sends a trace of each request."""
    os.environ["LORAPLEX_DATA_DIR"] = folder
    from server.bundled_base import ensure_bundled_base
    from server.engine.environment import prepare_environment
    from server.settings import Settings

    base = str(ensure_bundled_base())
    prepare_environment(base, "error", "grouped", Path(folder))
    from tests.benchmarks.fake_core import install

    install(step_seconds)
    settings = Settings(
        port=port,
        kv_cache_gib=0.25,
        max_running=512,
        log_level="error",
        request_log="off" if kind == "unseen" else "json",
        traces_endpoint=collector,
    )
    if kind != "vllm":
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - it takes the request log
        from server.process.serve import serve as run

        run(settings, lambda _text: None)
    else:
        uvloop.run(_serve_vllm(settings, base, port))


async def _serve_vllm(settings: Any, base: str, port: int) -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers import app as launcher
    from vllm.entrypoints.launchers.api_server.entry import build_and_serve
    from vllm.entrypoints.serve.sagemaker import api_router as sagemaker
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM

    from server.engine.arguments import engine_arguments
    from server.engine.device.device import read_device

    arguments = engine_arguments(settings, base, read_device())
    arguments.host, arguments.port = "127.0.0.1", port
    # As its server is by default; this one parses calls of tools where a request has tools.
    arguments.enable_auto_tool_choice, arguments.tool_call_parser = False, None
    arguments.disable_uvicorn_access_log, arguments.uvicorn_log_level = True, "warning"
    # Routes that no client of ours uses; their package isn't installed.
    sagemaker.attach_router = lambda *_args: None
    sagemaker.sagemaker_standards_bootstrap = lambda app: app
    launcher.sagemaker_standards_bootstrap = lambda app: app
    context = UsageContext.OPENAI_API_SERVER
    config = AsyncEngineArgs.from_cli_args(arguments).create_engine_config(context)
    client = AsyncLLM.from_vllm_config(config, usage_context=context)
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    await (await build_and_serve(client, f"127.0.0.1:{port}", listener, arguments))


async def stream(port: int, key: str, num_tokens: int) -> int:
    """Read one streamed chat to its end; return how many events had a token."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = json.dumps(
        {
            "model": "base",
            "stream": True,
            "max_tokens": num_tokens,
            "messages": [{"role": "user", "content": "Say something."}],
        }
    )
    writer.write(
        (
            "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
            f"authorization: Bearer {key}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n{body}"
        ).encode()
    )
    content = await reader.read(-1)
    writer.close()
    assert content.startswith(b"HTTP/1.1 200"), content[:300]
    assert b"[DONE]" in content
    return content.count(b'"delta":{"content"')


async def measure(process: psutil.Process, port: int, key: str, streams: int, tokens: int) -> Any:
    """Return microseconds of CPU for each token, and the tokens of each event."""
    before = process.cpu_times()
    events = sum(await asyncio.gather(*(stream(port, key, tokens) for _ in range(streams))))
    after = process.cpu_times()
    seconds = after.user + after.system - before.user - before.system
    return seconds * 1e6 / (streams * tokens), streams * tokens / max(1, events)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(process: Any, port: int, path: str) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while process.is_alive() and time.monotonic() < deadline:
        try:
            if httpx.get(f"http://127.0.0.1:{port}{path}", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise SystemExit(f"the server on port {port} did not become ready")


def _key(folder: Path) -> str:
    """Return the admin's key of a server; vLLM's server has none and reads none."""
    path = folder / "admin.key"
    return path.read_text().strip() if path.exists() else "none"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--beside", choices=("vllm", "unseen"), default="vllm")
    parser.add_argument("--streams", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--tokens", type=int, default=64, help="of each stream")
    parser.add_argument("--tokens-per-second", type=float, default=1600, help="of all streams")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    results: dict[str, Any] = {}
    servers = "loraplex", options.beside
    for streams in options.streams:
        results[str(streams)] = _compare(options, streams)
        ours, theirs = (results[str(streams)][kind]["us_per_token"] for kind in servers)
        print(
            f"{streams} streams: {ours:.0f} us a token here, {theirs:.0f} {options.beside}, "
            f"ratio {ours / theirs:.2f}"
        )
    print(json.dumps(results))


def _compare(options: argparse.Namespace, streams: int) -> dict[str, Any]:
    spawn = multiprocessing.get_context("spawn")
    step_seconds = streams / options.tokens_per_second
    servers = "loraplex", options.beside
    found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in servers}
    with tempfile.TemporaryDirectory() as folder, otlp_receiver() as receiver:
        ports = {kind: _free_port() for kind in servers}
        is_traced = options.beside == "unseen"
        processes = {}
        for kind in servers:
            collector = receiver.endpoint if is_traced and kind == "loraplex" else None
            (Path(folder) / kind).mkdir()
            arguments = (kind, ports[kind], str(Path(folder) / kind), step_seconds, collector)
            processes[kind] = spawn.Process(target=serve, args=arguments)
        try:
            for kind, process in processes.items():
                process.start()
                _wait(process, ports[kind], "/health" if kind == "vllm" else "/readyz")
            keys = {kind: _key(Path(folder) / kind) for kind in servers}
            for number in range(options.rounds + 1):
                for kind in servers:
                    process = psutil.Process(processes[kind].pid)
                    run = measure(process, ports[kind], keys[kind], streams, options.tokens)
                    measured = asyncio.run(run)
                    if number:  # the first round warms up
                        found[kind].append(measured)
        finally:
            for process in processes.values():
                if process.pid:
                    process.kill()
                    process.join()
    return {
        kind: {
            "us_per_token": statistics.median(us for us, _ in rounds),
            "rounds": [round(us, 1) for us, _ in rounds],
            "tokens_per_event": statistics.median(tokens for _, tokens in rounds),
        }
        for kind, rounds in found.items()
    }


if __name__ == "__main__":
    main()
