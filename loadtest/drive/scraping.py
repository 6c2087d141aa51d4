"""Fetches the server's metrics during the load. They are read after it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from loadtest.drive.admin import Admin
from loadtest.errors import LoadTestError

EVERY_SECONDS = 1.0
PATH = "/metrics"


@dataclass
class Scraper:
    """Keeps pages of `/metrics` with their times: to parse them now would delay the load."""

    admin: Admin
    now: Callable[[], float]
    pages: list[tuple[float, bytes]] = field(default_factory=list)

    async def run(self) -> None:
        """Fetch a page a second until cancelled. Stop if the first one can't be had."""
        while True:
            try:
                page = await self.admin.page(PATH)
            except LoadTestError:
                if not self.pages:
                    return
            else:
                self.pages.append((self.now(), page))
            await asyncio.sleep(EVERY_SECONDS)
