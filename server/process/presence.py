"""Says to the database that this server runs and what it holds, for the console of each server."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from contextlib import suppress

from sqlalchemy.exc import SQLAlchemyError

from adapters_registry.records.servers import (
    REPORT_SECONDS,
    ServerFigures,
    forget_server,
    report_server,
)
from adapters_registry.records.tables import now
from adapters_registry.registry import Registry
from server.engine.interface import Engine
from server.residency.figures import figures_now
from server.residency.leases import Leases

log = logging.getLogger(__name__)


class Presence:
    """Reports one server, from its start to its end."""

    def __init__(
        self,
        registry: Registry,
        leases: Leases,
        engine: Engine,
        slots: int,
        port: int,
        num_waiting: Callable[[], int],
    ) -> None:
        """Prepare the reports.

        `slots`: how many the engine has. `port`: where the server answers, for its name.
        `num_waiting` counts the requests that wait.
        """
        self._num_waiting = num_waiting
        self._registry, self._leases, self._engine = registry, leases, engine
        self._slots, self._started_at = slots, now()
        self.name = f"{socket.gethostname()}:{port}"

    async def keep_up(self, interval_seconds: float = REPORT_SECONDS) -> None:
        """Report every few seconds. If the database does not answer, the next time is tried."""
        while True:
            waiting = self._num_waiting()
            add_up = figures_now(self._registry, self._leases, self._engine, self._slots, waiting)
            try:
                await asyncio.to_thread(self._report, add_up)
            except SQLAlchemyError as error:
                log.debug("the other servers are not told of this one: %s", error)
            await asyncio.sleep(interval_seconds)

    def end(self) -> None:
        """Say that the server has stopped. If the database does not answer, others find out."""
        with suppress(SQLAlchemyError), self._registry.session() as session:
            forget_server(session, self._registry.server_id)

    def _report(self, add_up: Callable[[], ServerFigures]) -> None:
        figures = add_up()
        with self._registry.session() as session:
            server_id = self._registry.server_id
            report_server(session, server_id, self.name, self._started_at, figures)
