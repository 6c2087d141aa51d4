"""Hostile behaviour of clients: halves, floods, slowness, and requests that end too early."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

from tests.real_engine.abuse import CHAT, COMPLETIONS, Abuse, Answers, Site, encoded
from tests.real_engine.hostile_bodies import ENDLESS, MIB, completion, function, structured

WAIT_SECONDS = 5
LONG_STREAM = completion(**ENDLESS, stream=True, logprobs=5)
UPLOAD = "/admin/adapters"


async def ask_and_read(site: Site, bytes_a_second: int) -> Answers:
    """Ask for long answers on several connections with small buffers, and read little or none."""
    body = encoded(LONG_STREAM)
    head = site.head(COMPLETIONS, content_type="application/json", content_length=len(body))
    clients = []
    for _ in range(6):
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", site.server.port))
        client.sendall(head + b"\r\n" + body)
        client.setblocking(False)
        clients.append(client)
    for _ in range(2 * WAIT_SECONDS):
        await asyncio.sleep(1)
        for client in clients if bytes_a_second else ():
            with contextlib.suppress(BlockingIOError):
                client.recv(bytes_a_second)
    for client in clients:
        client.close()
    return []


async def read_nothing(site: Site) -> Answers:
    return await ask_and_read(site, 0)


async def read_slowly(site: Site) -> Answers:
    return await ask_and_read(site, 10)


async def half_bodies(site: Site) -> Answers:
    """Announce 100 bodies of 4 MiB, send half of each, and wait."""
    head = site.head(CHAT, content_type="application/json", content_length=4 * MIB)
    writers = []
    for _ in range(100):
        _, writer = await site.connect()
        writer.write(head + b'\r\n{"model": "base", "user": "' + b"x" * 2 * MIB)
        writers.append(writer)
    await asyncio.sleep(WAIT_SECONDS)
    for writer in writers:
        writer.transport.abort()
    return []


async def endless_headers(site: Site) -> Answers:
    """Send headers without an end, as fast as they are taken."""
    _, writer = await site.connect()
    writer.write(site.head(CHAT))
    with contextlib.suppress(OSError):
        for number in range(500):
            writer.write(f"x-{number}: ".encode() + b"x" * MIB + b"\r\n")
            await writer.drain()
    writer.transport.abort()
    return []


async def tiny_chunks(site: Site) -> Answers:
    """Send a body in a million chunks of a byte each."""
    _, writer = await site.connect()
    writer.write(
        site.head(CHAT, content_type="application/json", transfer_encoding="chunked") + b"\r\n"
    )
    with contextlib.suppress(OSError):
        for _ in range(100):
            writer.write(b"1\r\nx\r\n" * 10_000)
            await writer.drain()
    writer.transport.abort()
    return []


async def pipelined(site: Site) -> Answers:
    """Send 5,000 wrong requests in one write, and read no answer."""
    _, writer = await site.connect()
    one = site.head(CHAT, content_type="application/json", content_length=2) + b"\r\n{}"
    writer.write(one * 5000)
    await asyncio.sleep(WAIT_SECONDS)
    writer.transport.abort()
    return []


async def large_bodies(site: Site) -> Answers:
    """Send forty bodies of 7 MiB at once, which are more than a tenant may hold."""
    body = encoded(completion(user="u" * 7 * MIB))
    return await site.post_all(COMPLETIONS, [body] * 40)


async def cancelled(site: Site) -> Answers:
    """Ask 300 times for endless answers, and go away at once."""
    async with site.client() as client:
        asked = [
            asyncio.create_task(client.post(COMPLETIONS, json=LONG_STREAM)) for _ in range(300)
        ]
        await asyncio.sleep(2)
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
    return []


async def broken_uploads(site: Site) -> Answers:
    """Begin 20 uploads of 100 MiB, and break off after 2 MiB."""
    boundary = "xxx"
    kind = f"multipart/form-data; boundary={boundary}"
    head = site.head(UPLOAD, content_type=kind, content_length=100 * MIB)
    part = (
        f'\r\n--{boundary}\r\ncontent-disposition: form-data; name="name"\r\n\r\nbroken\r\n'
        f'--{boundary}\r\ncontent-disposition: form-data; name="files"; '
        'filename="adapter_model.safetensors"\r\n\r\n'
    )
    writers = []
    for _ in range(20):
        _, writer = await site.connect()
        writer.write(head + part.encode() + b"\0" * 2 * MIB)
        writers.append(writer)
    await asyncio.sleep(2)
    for writer in writers:
        writer.transport.abort()
    await asyncio.sleep(1)
    spool = [path for path in site.server.data_dir.rglob("*") if path.stat().st_size == 2 * MIB]
    assert not spool, "parts of broken uploads stay on the disk"
    return []


async def media_types(site: Site) -> Answers:
    kinds = (
        "text/plain",
        "application/xml",
        "image/png",
        "multipart/form-data; boundary=x",
        "a" * 999,
    )
    body = completion()
    return [await site.post(COMPLETIONS, body, **{"content-type": kind}) for kind in kinds]


async def large_headers(site: Site) -> Answers:
    return [await site.post(CHAT, {}, **{"x-large": "x" * 100_000}) for _ in range(10)]


async def all_tools(site: Site) -> Answers:
    """Demand a call of one of 128 tools, whose schemas are one grammar."""
    tools = [function(i, **{f"p{j}": {"type": "string"} for j in range(7)}) for i in range(128)]
    body = {
        "model": "base",
        "messages": [{"role": "user", "content": "a"}],
        "max_tokens": 4,
        "tools": tools,
        "tool_choice": "required",
    }
    return await site.post_all(CHAT, [body] * 3)


def sends(path: str, *bodies: Any) -> Any:
    async def send(site: Site) -> Answers:
        return await site.post_all(path, bodies)

    return send


NESTED_REPETITIONS = r"((((a{1,40}b){1,40}c){1,40}d){1,40}e){1,40}"
"""Within every bound, so it is compiled in the process for that, in time or not."""
LONG_PROMPT = {"prompt": "word " * 4000, "max_tokens": 1}
ODD_NUMBERS = [
    completion(**odd)
    for odd in (
        {"top_k": 1 << 40},
        {"temperature": 1e308},
        {"temperature": 1e-300},
        {"repetition_penalty": 1e308},
        {"repetition_penalty": 1e-300},
        {"presence_penalty": -2, "frequency_penalty": 2},
        {"top_p": 1e-320, "temperature": 1},
        {"min_p": 1, "temperature": 1},
        {"seed": -(1 << 63), "temperature": 1},
        {"thinking_token_budget": 1 << 40},
        {"stream_interval": 1 << 40},
        {"logprobs": 1, "logprob_token_ids": [1 << 40]},
        {"logprobs": 1, "logprob_token_ids": [-1]},
        {"truncate_prompt_tokens": -1},
        {"prompt_logprobs": -1},
        {"logprobs": -1},
    )
]
"""Answered or refused, but no 5xx, and the engine lives on."""
CLIENTS = [
    Abuse("client that reads nothing", read_nothing, None),
    Abuse("client that reads 10 bytes a second", read_slowly, None),
    Abuse("100 half bodies of 4 MiB", half_bodies, None),
    Abuse("headers without an end", endless_headers, None),
    Abuse("a million chunks of a byte", tiny_chunks, None),
    Abuse("5,000 requests in one write", pipelined, None),
    Abuse("40 bodies of 7 MiB at once", large_bodies, None),
    Abuse("300 requests, cancelled", cancelled, None),
    Abuse("20 uploads that break off", broken_uploads, None),
    Abuse("unknown media types", media_types, 415),
    Abuse("headers of 100 kB", large_headers, 431),
]
WITHIN_THE_BOUNDS = [
    Abuse("odd numbers", sends(COMPLETIONS, *ODD_NUMBERS), None),
    Abuse(
        "a regex with nested repetitions",
        sends(COMPLETIONS, structured(regex=NESTED_REPETITIONS)),
        None,
    ),
    Abuse(
        "a grammar that recurs on the left",
        sends(COMPLETIONS, structured(grammar='root ::= root "a" | "b"')),
        None,
    ),
    Abuse("a regex that backtracks", sends(COMPLETIONS, structured(regex="(a+)+(b+)+$")), None),
    Abuse("128 tools, one demanded", all_tools, None),
    Abuse(
        "log-probabilities of a long prompt",
        sends(COMPLETIONS, *[completion(**LONG_PROMPT, prompt_logprobs=20)] * 2),
        400,
        "prompt_logprobs",
    ),
    Abuse(
        "as many of them as one answer holds",
        sends(COMPLETIONS, *[completion(**LONG_PROMPT, prompt_logprobs=7)] * 2),
        200,
    ),
    Abuse(
        "log-probabilities of sixteen answers",
        sends(COMPLETIONS, completion(n=16, max_tokens=1000, logprobs=20)),
        400,
        "max_tokens",
    ),
    Abuse(
        "32 endless choices, three times",
        sends(COMPLETIONS, *[completion(n=32, max_tokens=100)] * 3),
        None,
    ),
]
