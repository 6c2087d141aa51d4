"""Checks what the server needs of the network: its ports, and a collector of traces."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

from server.doctor.finding import Finding, ok, problem, warning
from server.process.data_dir import is_in_use
from server.process.listening import listen
from server.settings import Settings, SettingsError, variable_of
from server.settings.traces_endpoint import TracesEndpoint

CONNECT_SECONDS = 3.0
_PORTS = {"http": 80, "https": 443}


def check_ports(settings: Settings) -> Iterator[Finding]:
    """Yield whether the server can listen on its ports."""
    ports = {"port": settings.port, "operations_port": settings.operations_port}
    for name, port in ports.items():
        if port is None:
            continue
        where = f"{settings.host}:{port}"
        try:
            listen(settings.host, port, variable_of(name)).close()
        except SettingsError as error:
            if is_in_use(settings):
                yield ok("port", f"{where} is in use, and a server runs on this data folder")
            else:
                yield problem("port", str(error), "or end the program that uses it")
        else:
            yield ok("port", f"{where} is free")


def check_traces(settings: Settings) -> Iterator[Finding]:
    """Yield whether something listens where traces are sent."""
    if settings.traces_endpoint is None:
        return
    address = urlsplit(TracesEndpoint.parse(settings.traces_endpoint).url)
    where = (address.hostname or "", address.port or _PORTS[address.scheme])
    try:
        socket.create_connection(where, CONNECT_SECONDS).close()
    except OSError as error:
        yield warning(
            "traces",
            f"nothing answers at {where[0]}:{where[1]} ({error}), so traces are lost",
            "start the collector, or correct LORAPLEX_TRACES_ENDPOINT",
        )
    else:
        yield ok("traces", f"a collector listens at {where[0]}:{where[1]}")
