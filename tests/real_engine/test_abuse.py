"""One tenant's hostile requests don't hurt another's stream, nor the server's memory.

`make abuse` prints the table. The bound on memory is the real one. The bound on gaps is wide here,
as machines that run tests are shared; what is measured is printed, and a gap of 1 s is the aim.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import httpx
import pytest

from tests.real_engine.abuse import CHAT, COMPLETIONS, Abuse, Site, harm_of
from tests.real_engine.running_server import RunningServer
from tests.real_engine.test_tenants import key_of

MAX_GROWTH_MIB = 256
MAX_GAP_SECONDS = 30
"""On machines that do much else; the aim is 1 s."""


def structured(**constraint: Any) -> dict[str, Any]:
    return {"model": "base", "prompt": "a", "max_tokens": 4, "structured_outputs": constraint}


def with_schema(schema: Any) -> dict[str, Any]:
    return {
        "model": "base",
        "messages": [{"role": "user", "content": "a"}],
        "max_tokens": 4,
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
    }


def posts(path: str, body: Any) -> Any:
    return lambda site: site.post(path, body)


async def several(site: Site, path: str, bodies: list[Any]) -> httpx.Response:
    answers = await asyncio.gather(*(site.post(path, body) for body in bodies))
    return max(answers, key=lambda answer: answer.status_code)


async def stall(site: Site) -> None:
    """Ask for long answers on several connections, and read none of them."""
    body = (
        b'{"model":"base","prompt":"a","max_tokens":2000,"ignore_eos":true,"stream":true,'
        b'"logprobs":5}'
    )
    head = (
        f"POST {COMPLETIONS} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {site.key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    sockets = []
    for _ in range(6):
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", site.server.port))
        client.sendall(head.encode() + body)
        sockets.append(client)
    await asyncio.sleep(10)
    for client in sockets:
        client.close()


LONG_STRINGS = {
    "type": "object",
    "properties": {
        f"p{i}": {"type": "string", "minLength": 1, "maxLength": 20001 + i} for i in range(10)
    },
}
MANY_VALUES = {"enum": [f"value number {i}" for i in range(20000)]}
# Within every bound, so it is compiled in the process for that, in time or not.
NESTED_REPETITIONS = r"((((a{1,40}b){1,40}c){1,40}d){1,40}e){1,40}"

ABUSES = [
    Abuse(
        "20,000 enum values, ten times",
        lambda site: several(site, CHAT, [with_schema(MANY_VALUES)] * 10),
        400,
        "response_format",
    ),
    Abuse(
        "ten strings of 20,000 letters, ten times",
        lambda site: several(site, CHAT, [with_schema(LONG_STRINGS)] * 10),
        400,
        "response_format",
    ),
    Abuse(
        "a regex with nested repetitions",
        posts(COMPLETIONS, structured(regex=NESTED_REPETITIONS)),
        None,
    ),
    Abuse("client that reads nothing", stall, None),
]


@pytest.fixture(scope="module")
def site(server: RunningServer) -> Site:
    return Site(server, key_of(server, "hostile"))


@pytest.fixture(scope="module")
def bystander_key(server: RunningServer) -> str:
    return key_of(server, "bystander")


@pytest.mark.parametrize("abuse", ABUSES, ids=lambda abuse: abuse.name)
async def test_a_bystander_is_not_hurt(abuse: Abuse, site: Site, bystander_key: str) -> None:
    harm = await harm_of(abuse, site, bystander_key)
    print(
        f"\nabuse | {abuse.name} | longest gap {harm.longest_gap_seconds:.2f} s | "
        f"{harm.num_tokens} tokens | memory {harm.growth_mib:+.0f} MiB"
    )
    assert not harm.failures
    assert harm.num_tokens
    assert harm.longest_gap_seconds < MAX_GAP_SECONDS
    assert harm.growth_mib < MAX_GROWTH_MIB
    if abuse.status is not None:
        assert harm.answer is not None
        assert harm.answer.status_code == abuse.status, harm.answer.text
        if abuse.param:
            assert harm.answer.json()["error"]["param"].startswith(abuse.param)
