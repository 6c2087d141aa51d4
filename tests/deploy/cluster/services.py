"""What finds pods: the cluster's name server, and a Service's address before its pods."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import cast

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

from tests.deploy.cluster.pod import Pod

Addresses = Callable[[], list[str]]
DOMAIN = "svc.cluster.local."
TTL_SECONDS = 5
"""CoreDNS' own for what is in the cluster."""


class Names(asyncio.DatagramProtocol):
    """Answers for names of Services with the addresses that they have now."""

    def __init__(self, known: Mapping[str, Addresses]) -> None:
        """`known`: for each `service.namespace` what gives its addresses."""
        self._known = {f"{name}.{DOMAIN}": found for name, found in known.items()}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        self._transport.sendto(self.answer(data), address)

    def answer(self, data: bytes) -> bytes:
        """Return the answer to a question as bytes."""
        query = dns.message.from_wire(data)
        answer = dns.message.make_response(query)
        answer.flags |= dns.flags.AA | dns.flags.RA
        (question,) = query.question
        found = self._known.get(question.name.to_text().lower())
        if found is None:
            answer.set_rcode(dns.rcode.NXDOMAIN)
        elif question.rdtype == dns.rdatatype.A and (addresses := found()):
            found_here = dns.rrset.from_text_list(question.name, TTL_SECONDS, "IN", "A", addresses)
            answer.answer = [found_here]
        return answer.to_wire()


class ServicePort:
    """One port of a Service's own address: each connection goes to one of its pods, by chance."""

    def __init__(self, pods: Callable[[], list[Pod]], target: str | int) -> None:
        self._pods, self._target = pods, target

    async def listen(self, address: str, port: int) -> asyncio.Server:
        return await asyncio.start_server(self._connect, address, port)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """As kube-proxy does: nothing is tried again, and the client sees what the pod does."""
        with suppress(OSError, IndexError):
            pod = random.choice(self._pods())
            there, back = await asyncio.open_connection(pod.address, pod.port(self._target))
            await asyncio.gather(_copy(reader, back), _copy(there, writer))
        writer.close()


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await source.read(1 << 16):
            target.write(data)
            await target.drain()
    with suppress(OSError):
        target.write_eof() if target.can_write_eof() else target.close()
