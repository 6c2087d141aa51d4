"""A stand-in for a server with adapters: raw asyncio, fast, and broken on demand.

    python -m tests.loadtest.stub_server [--port 8100] [--first-token 0.01] [--gap 0.001]

It speaks the streaming completions and chat APIs, `/v1/models`, `/metrics` and the part of `/admin`
that churn needs. A version's answer to a prompt is a hash of both, so the wrong one shows.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import time
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KEY = "stub-key"
BASE = "base"
FAULTS = (
    "wrong_adapter",  # says the right version, computes with another
    "foreign",  # resolves to another adapter, and says so
    "mixed",  # begins on one version and ends on another
    "stall",
    "silent",
    "reset",
    "garbage",
    "truncated",
    "error_event",
    "overloaded",
    "short",
    "stale",  # vLLM's way of loading: what a name and path stood for once is what they stay
)


@dataclass
class Adapter:
    live: int = 1
    previous: int = 1
    versions: set[int] = field(default_factory=lambda: {1})


class Stub:
    """State of the server: adapters, how fast it is, and what is broken."""

    def __init__(self, adapters: Iterable[str] = (), *, ours: bool = True) -> None:
        self.adapters = {name: Adapter() for name in adapters}
        self.ours = ours
        self.first_token_seconds = 0.0
        self.gap_seconds = 0.0
        self.fault: str | None = None
        self.num_requests = 0
        self.models: list[str] = []
        self.weights: dict[str, str] = {}
        """What adapters loaded vLLM's way compute with."""
        self.seen: dict[tuple[str, str], int] = {}
        self.open_streams = 0
        self.durations: list[float] = []
        """Seconds from each request's arrival to the last byte of its answer, as seen here."""

    async def start(self, port: int = 0) -> asyncio.Server:
        loop = asyncio.get_running_loop()
        return await loop.create_server(lambda: _Connection(self), "127.0.0.1", port, backlog=4096)

    def resolve(self, model: str) -> str | None:
        """The version's public name, None if there is no such model."""
        if model == BASE:
            return BASE
        name, _, version = model.removeprefix("default/").partition("@")
        adapter = self.adapters.get(name)
        if adapter is None:
            return None
        if not self.ours:
            return model
        number = int(version or adapter.live)
        return f"default/{name}@{number}" if number in adapter.versions else None


def words(version: str, prompt: str, number: int) -> list[tuple[str, float]]:
    """The greedy answer of a version: tokens and their log-probabilities."""
    hashes = [zlib.crc32(f"{version}|{prompt}|{i}".encode()) for i in range(number)]
    return [(f" w{value % 1000}", -(value % 50) / 100) for value in hashes]


class _Connection(asyncio.Protocol):
    """One client connection; answers one request at a time."""

    def __init__(self, stub: Stub) -> None:
        self.stub, self.buffer, self.began = stub, b"", 0.0
        self.timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.stub.open_streams -= 1
            self.timer = None

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, separator, rest = self.buffer.partition(b"\r\n\r\n")
        if not separator:
            return
        match = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
        length = int(match[1]) if match else 0
        if len(rest) < length:
            return
        self.buffer = rest[length:]
        method, path, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
        if f"Bearer {KEY}".encode() not in head and path != "/metrics":
            self.reply(401, {"error": {"message": "bad key", "code": "invalid_api_key"}})
        elif path in ("/v1/completions", "/v1/chat/completions"):
            self.generate(json.loads(rest[:length]), chat="chat" in path)
        else:
            self.reply(*self.operate(method, path.split("?")[0], rest[:length]))

    def reply(self, status: int, body: Any) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = f"HTTP/1.1 {status} Stub\r\ncontent-type: application/json\r\n"
        self.transport.write(head.encode() + b"content-length: %d\r\n\r\n" % len(content) + content)

    def operate(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """Everything but generating."""
        stub = self.stub
        if path == "/v1/models":
            models = [{"id": BASE, "parent": None}]
            models += [{"id": name, "parent": BASE} for name in stub.adapters]
            return 200, {"data": models}
        if path == "/metrics":
            return (
                200,
                b"# TYPE stub_requests counter\nstub_requests_total %d\n" % stub.num_requests,
            )
        if path == "/durations":
            return 200, stub.durations
        if path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter") and not stub.ours:
            return self.load(json.loads(body))
        if not stub.ours:
            return 404, {"detail": "Not Found"}
        if path == "/admin/adapters" and method == "GET":
            return 200, {"data": [], "next": None}
        if path == "/admin/adapters":
            return 201, self.register(form_field(body, "name"), form_field(body, "promote"))
        match = re.fullmatch(r"/admin/adapters/default/([^/]+)(/.*)?", path)
        if match is None or match[1] not in stub.adapters:
            return 404, {"error": {"message": "no such adapter"}}
        return 200, self.change(method, match[1], match[2] or "", body)

    def load(self, body: dict[str, Any]) -> tuple[int, Any]:
        """vLLM's way; with the fault `stale` a name and path once seen keep their weights."""
        stub, name = self.stub, body["lora_name"]
        if (name in stub.adapters) == ("lora_path" in body):
            return 400, {"message": f"{name} has been loaded already, or isn't"}
        if "lora_path" not in body:
            del stub.adapters[name]
            return 200, b"Success"
        stub.adapters[name] = Adapter()
        found = zlib.crc32((Path(body["lora_path"]) / "adapter_model.safetensors").read_bytes())
        key = name, body["lora_path"]
        known = stub.seen.setdefault(key, found)
        stub.weights[name] = str(known if stub.fault == "stale" else found)
        return 200, b"Success"

    def change(self, method: str, name: str, rest: str, body: bytes) -> dict[str, Any]:
        adapter = self.stub.adapters[name]
        if rest == "/aliases/live":
            adapter.previous, adapter.live = adapter.live, json.loads(body)["targets"][0]["version"]
        elif rest == "/rollback":
            adapter.live, adapter.previous = adapter.previous, adapter.live
        elif rest.startswith("/versions/") and method == "DELETE":
            adapter.versions.discard(int(rest.rsplit("/", 1)[1]))
        return {"name": name, "live": adapter.live}

    def register(self, name: str, promote: str) -> dict[str, Any]:
        adapter = self.stub.adapters.get(name)
        if adapter is None:
            adapter = self.stub.adapters[name] = Adapter()
        else:
            adapter.versions.add(max(adapter.versions) + 1)
        number = max(adapter.versions)
        if promote == "true":
            adapter.previous, adapter.live = adapter.live, number
        return {"model": f"default/{name}@{number}", "version": number, "state": "ready"}

    def generate(self, body: dict[str, Any], *, chat: bool) -> None:
        stub = self.stub
        stub.num_requests += 1
        self.began = time.perf_counter()
        stub.models.append(body["model"])
        version, fault = stub.resolve(body["model"]), stub.fault
        if version is None:
            error = {"message": f"no model {body['model']}", "code": "model_not_found"}
            self.reply(404, {"error": error})
        elif fault == "overloaded":
            self.reply(503, {"error": {"message": "busy", "code": "unavailable"}})
        elif fault != "silent":
            self.stream(body, version, chat)

    def stream(self, body: dict[str, Any], version: str, chat: bool) -> None:
        stub, fault = self.stub, self.stub.fault
        other = next((f"default/{n}@1" for n in stub.adapters if f"/{n}@" not in version), "none@1")
        prompt = json.dumps(body["messages"][-1] if chat else body["prompt"])
        number = body["max_tokens"] - (fault == "short")
        weights = self.stub.weights.get(version, version)
        tokens = words(other if fault == "wrong_adapter" else weights, prompt, number)
        if fault == "mixed":
            tokens[number // 2 :] = words(other, prompt, number)[number // 2 :]
        stream = _Stream(other if fault == "foreign" else version, chat, "logprobs" in body)
        pieces = [stream.piece(*token) for token in tokens[:-1]]
        pieces.append(stream.piece(*tokens[-1], ended=True) + stream.end(number))
        self.transport.write(stream.head())
        stub.open_streams += 1
        self.later(stub.first_token_seconds, broken(pieces, fault))

    def later(self, seconds: float, pieces: Sequence[bytes | None]) -> None:
        if seconds:
            loop = asyncio.get_running_loop()
            self.timer = loop.call_later(seconds, self.send, pieces)
        else:
            self.send(pieces)

    def send(self, pieces: Sequence[bytes | None]) -> None:
        """Send what is due now; None is a reset, an end without a last chunk a stall."""
        self.timer, gap = None, self.stub.gap_seconds
        now, rest = (pieces[:1], pieces[1:]) if gap else (pieces, ())
        self.transport.write(b"".join(piece for piece in now if piece is not None))
        if None in now:
            asyncio.get_running_loop().call_later(0.01, self.transport.abort)
        if rest:
            self.later(gap, rest)
        else:
            self.stub.open_streams -= 1
            self.stub.durations.append(time.perf_counter() - self.began)


def form_field(body: bytes, name: str) -> str:
    match = re.search(rb'name="%s"\r\n(?:[^\r]+\r\n)*\r\n([^\r]+)' % name.encode(), body)
    return match[1].decode() if match else ""


class _Stream:
    """The bytes of one streamed answer, in chunked encoding."""

    def __init__(self, version: str, chat: bool, with_logprobs: bool) -> None:
        self.version, self.chat, self.with_logprobs = version, chat, with_logprobs

    def head(self) -> bytes:
        adapter, _, number = self.version.partition("@")
        lines = ["HTTP/1.1 200 OK", "content-type: text/event-stream", "transfer-encoding: chunked"]
        if number:
            lines += [f"x-adapter-id: {adapter}", f"x-adapter-version: {number}"]
            lines += ["x-adapter-tier: slot"]
        return "\r\n".join([*lines, "", ""]).encode()

    def piece(self, token: str, logprob: float, *, ended: bool = False) -> bytes:
        choice: dict[str, Any] = {"index": 0, "finish_reason": "length" if ended else None}
        choice |= {"delta": {"content": token}} if self.chat else {"text": token}
        if self.with_logprobs:
            tops = {token: logprob, " else": logprob - 3.0}
            choice["logprobs"] = {
                "tokens": [token],
                "token_logprobs": [logprob],
                "top_logprobs": [tops],
            }
        return self.event({"model": self.version, "choices": [choice]})

    def end(self, number: int) -> bytes:
        usage = {"prompt_tokens": 1, "completion_tokens": number}
        last = self.event({"model": self.version, "choices": [], "usage": usage})
        return last + chunk(b"data: [DONE]\n\n") + chunk(b"")

    def event(self, body: dict[str, Any]) -> bytes:
        return chunk(b"data: " + json.dumps(body).encode() + b"\n\n")


def chunk(content: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(content), content)


def broken(pieces: list[bytes], fault: str | None) -> list[bytes | None]:
    """The same answer, cut after two tokens if it has more."""
    error = b'data: {"error": {"message": "engine died", "code": "internal_error"}}\n\n'
    endings: dict[str, list[bytes | None]] = {
        "stall": [],
        "reset": [None],
        "garbage": [chunk(b"data: {not json\n\n"), *pieces[2:]],
        "truncated": [chunk(b"")],
        "error_event": [chunk(error), chunk(b"data: [DONE]\n\n"), chunk(b"")],
    }
    return [*pieces[:2], *endings[fault]] if fault in endings and len(pieces) > 2 else [*pieces]


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8100)
    parser.add_argument("--first-token", type=float, default=0.0)
    parser.add_argument("--gap", type=float, default=0.0)
    parser.add_argument("--adapters", type=int, default=16)
    parser.add_argument("--fault", choices=FAULTS)
    arguments = parser.parse_args()
    stub = Stub([f"load-{index}" for index in range(arguments.adapters)])
    stub.first_token_seconds, stub.gap_seconds = arguments.first_token, arguments.gap
    stub.fault = arguments.fault
    server = await stub.start(arguments.port)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    import uvloop

    uvloop.run(main())
