"""Hostile behaviour of clients, whatever their bodies say."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from tests.real_engine.abuse import CHAT, COMPLETIONS, Abuse, Answers, Site, encoded
from tests.real_engine.hostile_bodies import ENDLESS, completion, structured

WAIT_SECONDS = 10
LONG_STREAM = completion(**ENDLESS, stream=True, logprobs=5)


async def read_nothing(site: Site) -> Answers:
    """Ask for long answers on several connections with small buffers, and read none."""
    body = encoded(LONG_STREAM)
    head = site.head(COMPLETIONS, content_type="application/json", content_length=len(body))
    clients = []
    for _ in range(6):
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", site.server.port))
        client.sendall(head + b"\r\n" + body)
        clients.append(client)
    await asyncio.sleep(WAIT_SECONDS)
    for client in clients:
        client.close()
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


def sends(path: str, *bodies: Any) -> Any:
    async def send(site: Site) -> Answers:
        return await site.post_all(path, bodies)

    return send


NESTED_REPETITIONS = r"((((a{1,40}b){1,40}c){1,40}d){1,40}e){1,40}"
"""Within every bound, so it is compiled in the process for that, in time or not."""
CLIENTS = [
    Abuse(
        "a regex with nested repetitions",
        sends(COMPLETIONS, structured(regex=NESTED_REPETITIONS)),
        None,
    ),
    Abuse("client that reads nothing", read_nothing, None),
    Abuse("unknown media types", media_types, 415),
    Abuse("headers of 100 kB", large_headers, 431),
]
