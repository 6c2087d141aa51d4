"""A TCP port before another one. While it is switched off, connections are cut or refused."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from socketserver import BaseRequestHandler, ThreadingTCPServer
from urllib.parse import urlsplit


class Switch:
    """Passes on what comes to `url`, until it is switched off."""

    def __init__(self, behind: str, host: str = "127.0.0.1") -> None:
        """`behind`: the URL of a server on this machine. `host`: where to listen."""
        address = (urlsplit(behind).hostname or "", urlsplit(behind).port or 0)
        self._is_on, self._open = True, set[socket.socket]()
        switch = self

        class Handler(BaseRequestHandler):
            def handle(self) -> None:
                if switch._is_on:
                    switch._pass_on(self.request, address)

        self._server = ThreadingTCPServer((host, 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://{host}:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @contextlib.contextmanager
    def off(self) -> Iterator[None]:
        """Cut all connections, and refuse new ones within the context."""
        self._is_on = False
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        yield
        self._is_on = True

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _pass_on(self, client: socket.socket, address: tuple[str, int]) -> None:
        with socket.create_connection(address) as server:
            self._open |= {client, server}
            back = threading.Thread(target=_copy, args=(server, client), daemon=True)
            back.start()
            _copy(client, server)
            back.join()
            self._open -= {client, server}


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    for each in (source, target):
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
