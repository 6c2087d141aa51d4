"""The sockets on which the server listens."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from server.settings import Settings, SettingsError

HTTP_SETTING = "LORAPLEX_HOST, LORAPLEX_PORT (--host, --port)"


def listen(host: str, port: int, setting: str) -> socket.socket:
    """Bind a port before anything slow starts, so that a port in use is reported at once.

    Raises:
        SettingsError: the address cannot be bound; the message begins with `setting`.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        # Without this, another server could still take the port before uvicorn listens.
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise SettingsError(
            f"{setting}: cannot listen on {host}:{port}: {error.strerror}; choose another"
        ) from error
    listener.set_inheritable(False)
    return listener


@contextmanager
def listen_for_operations(settings: Settings) -> Iterator[socket.socket | None]:
    """Bind the operations' own port within the context, if there is to be one.

    Raises:
        SettingsError: the port cannot be bound.
    """
    if settings.operations_port is None:
        yield None
        return
    setting = "LORAPLEX_OPERATIONS_PORT (--operations-port)"
    with listen(settings.host, settings.operations_port, setting) as listener:
        yield listener
