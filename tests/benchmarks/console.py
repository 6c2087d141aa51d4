"""What the console's pages cost with 10,000 adapters, 1,000 tenants and 100,000 rows of usage.

    python -m tests.benchmarks.console [DATABASE_URL]

Fills an empty database (without a URL: a new SQLite file), opens each page several times in this
process, and prints the server's time and the bytes of each. "CPU" is this process's own time, which
other jobs on the machine disturb least. The last lines are of what all pages load besides.
"""

from __future__ import annotations

import asyncio
import gzip
import random
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import timedelta
from html import unescape
from pathlib import Path
from statistics import median
from typing import Any

import httpx
from fastapi import FastAPI
from rich.console import Console
from rich.table import Table
from sqlalchemy import insert

from adapters_registry.check.base import BaseSpec
from adapters_registry.content.store import ContentStore
from adapters_registry.records.tables import ApiKey, AuditEntry, now
from adapters_registry.records.usage.consumption import Consumption, UsageKey, hour_of
from adapters_registry.records.usage.recording import add_usage
from adapters_registry.registry import Registry
from server.app import build_server
from server.auth import Keys
from server.console.rendering import STATIC
from server.request_log.record import RequestRecord
from server.settings import Settings
from tests.benchmarks.registry import SMOLLM2
from tests.server.console.crowd import NUM_ADAPTERS, NUM_TENANTS, fill, name_of
from tests.server.fake_engine import FakeEngine

NUM_USAGE_ROWS = 100_000
NUM_RECENT = 20_000
"""Requests of the last hour: as many as a server keeps."""
USAGE_DAYS = 62
ROWS_AT_A_TIME = 10_000
TIMES = 7


def main() -> None:
    """Fill a registry, open all pages, and print a table."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        url = sys.argv[1] if len(sys.argv) > 1 else f"sqlite:///{root / 'registry.db'}"
        base = BaseSpec.from_config("SmolLM2-135M", SMOLLM2, max_rank=16)
        registry = Registry(url, ContentStore(root / "content"), base)
        fill(registry)
        add_records(registry)
        seconds = add_all_usage(registry)
        registry.refresh()
        table = asyncio.run(measure(registry, root))
        registry.close()
    Console(width=110).print(table)
    print(f"{NUM_USAGE_ROWS:,} rows of usage were recorded in {seconds:.1f} s")
    files = [file.read_bytes() for file in STATIC.iterdir() if file.is_file()]
    packed = sum(len(gzip.compress(file)) for file in files)
    print(
        f"scripts, styles and icon: {sum(map(len, files)) / 1e3:.0f} kB, {packed / 1e3:.0f} packed"
    )


def add_records(registry: Registry) -> None:
    """Add a key for each tenant, and as many entries to the audit trail as there are adapters."""
    with registry.change() as change:
        names = [name_of(index) for index in range(NUM_ADAPTERS)]
        keys = [
            {
                "id": f"{index:012x}",
                "tenant": tenant,
                "salt": "0" * 32,
                "secret_sha256": "0" * 64,
                "scopes": ["inference"],
                "epoch": change.epoch,
            }
            for index, (tenant, _) in enumerate(names[:NUM_TENANTS])
        ]
        entries = [
            {
                "actor": "key 0",
                "origin": "127.0.0.1",
                "tenant": tenant,
                "action": "alias.point",
                "subject": f"{tenant}/{name}@live",
                "after": {"targets": [{"version": 1, "weight": 100}]},
            }
            for tenant, name in names
        ]
        change.session.execute(insert(ApiKey), keys)
        change.session.execute(insert(AuditEntry), entries)


def add_all_usage(registry: Registry) -> float:
    """Add usage of random adapters in random hours; return the seconds that recording it took."""
    rows, seconds = usage_rows(), 0.0
    tenants = registry.catalog.tenants
    for _ in range(NUM_USAGE_ROWS // ROWS_AT_A_TIME):
        used: dict[UsageKey, Consumption] = {}
        while len(used) < ROWS_AT_A_TIME:
            days_ago, hour, tenant, adapter = next(rows)
            at = hour_of(now()) - timedelta(days=days_ago, hours=hour)
            used[at, tenants[tenant].id, tenant, adapter] = Consumption(3, 3_000, 400, 12.5, 1)
        began = time.perf_counter()
        with registry.session() as session:
            add_usage(session, used)
        seconds += time.perf_counter() - began
    return seconds


def usage_rows() -> Iterator[tuple[int, int, str, str]]:
    """Yield days ago, hours, tenant and adapter: none more often than another, the worst case."""
    dice = random.Random(3)
    while True:
        tenant, name = name_of(dice.randrange(NUM_ADAPTERS))
        yield dice.randrange(USAGE_DAYS), dice.randrange(24), tenant, f"{tenant}/{name}"


def add_recent_requests(app: FastAPI) -> None:
    """Fill the list of the requests of the last hour."""
    found: Any = [m.kwargs["recent"] for m in app.user_middleware if "recent" in m.kwargs]
    (recent,) = found
    dice = random.Random(4)
    for _ in range(NUM_RECENT):
        tenant, name = name_of(dice.randrange(NUM_ADAPTERS))
        stages = {"first_token": dice.random(), "sent": 1 + dice.random()}
        record = RequestRecord(path="/v1/chat/completions", tenant=tenant, ends=stages)
        record.model, record.version, record.status, record.complete = (
            f"{tenant}/{name}",
            1,
            200,
            True,
        )
        recent.add(record)


async def measure(registry: Registry, root: Path) -> Table:
    """Open each page, and return its times and its size."""
    keys, engine = Keys(registry), FakeEngine()
    settings = Settings(data_dir=root)
    app = build_server(settings, registry, engine, keys=keys).app
    add_recent_requests(app)
    key = keys.create("default", ["admin", "inference"])
    table = Table("page", *("median", "slowest", "CPU", "kB"))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://loraplex") as client:
        login = await client.get("/console/login")
        token = re.findall(r'"x-csrf-token": "([0-9a-f]+)"', unescape(login.text))[0]
        headers = {"hx-request": "true", "x-csrf-token": token}
        answer = await client.post("/console/login", data={"key": key}, headers=headers)
        assert answer.status_code == 204, answer.text
        for path in paths():
            table.add_row(path, *await time_page(client, path))
    return table


def paths() -> list[str]:
    """Return the pages, as an admin opens them."""
    tenant, name = name_of(4_321)
    today = now().date()
    month = f"since={today - timedelta(days=31)}&until={today}"
    return [
        "/console/overview",
        "/console/overview/live",
        "/console/adapters",
        "/console/adapters?sort=-size",
        "/console/adapters?search=0777",
        "/console/adapters?state=ready",
        f"/console/adapters/{tenant}/{name}",
        "/console/register",
        "/console/playground",
        "/console/playground/models?search=bot-0",
        "/console/usage",
        "/console/usage?page=20",
        f"/console/usage?{month}",
        f"/console/usage?tenant={tenant}",
        f"/console/usage?adapter={tenant}/{name}",
        f"/console/usage?{month}&tenant={tenant}",
        "/console/tenants",
        f"/console/tenants/{tenant}",
        "/console/keys",
        "/console/audit",
        f"/console/audit?tenant={tenant}",
        "/console/loadtests",
        "/console/usage/csv",
        f"/console/usage/csv?{month}",
    ]


async def time_page(client: httpx.AsyncClient, path: str) -> tuple[str, ...]:
    """Return the median, the longest and the CPU time of a page, and its size."""
    walls, cpus, size = [], [], 0
    for _ in range(TIMES):
        wall, cpu = time.perf_counter(), time.process_time()
        page: Any = await client.get(path)
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
        assert page.status_code == 200, (path, page.text)
        size = len(page.content)
    times = (median(walls), max(walls), median(cpus))
    return *(f"{seconds * 1e3:.0f} ms" for seconds in times), f"{size / 1e3:.0f}"


if __name__ == "__main__":
    main()
