"""The server's own metrics, taken beside the load and read after it."""

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
    """Pages of `/metrics` with their times: reading them would delay the load."""

    admin: Admin
    now: Callable[[], float]
    pages: list[tuple[float, bytes]] = field(default_factory=list)

    async def run(self) -> None:
        """Take a page a second until cancelled; give up where there is none."""
        while True:
            try:
                page = await self.admin.page(PATH)
            except LoadTestError:
                if not self.pages:
                    return
            else:
                self.pages.append((self.now(), page))
            await asyncio.sleep(EVERY_SECONDS)
