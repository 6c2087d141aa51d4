"""The server's own metrics, taken beside the load and read after it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

from loadtest.admin import Admin
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


def series(pages: list[tuple[float, bytes]]) -> dict[str, list[tuple[float, float]]]:
    """Each gauge and counter over time, summed over its labels; histograms as `_sum`, `_count`."""
    found: dict[str, list[tuple[float, float]]] = {}
    for at, page in pages:
        totals: dict[str, float] = {}
        try:
            for name, value in _samples(page):
                totals[name] = totals.get(name, 0.0) + value
        except ValueError:
            continue  # a page that was cut off
        for name, value in totals.items():
            found.setdefault(name, []).append((at, value))
    return found


def _samples(page: bytes) -> list[tuple[str, float]]:
    lines = [line for line in page.decode(errors="replace").splitlines() if "_bucket" not in line]
    return [
        (sample.name, sample.value)
        for family in text_string_to_metric_families("\n".join([*lines, ""]))
        for sample in family.samples
        if not sample.name.endswith("_created")
    ]
