"""What the server takes and holds, sampled all along: processes, disk, metric series, rows."""

from __future__ import annotations

import asyncio
import os
import re
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.soak.memory import CODE, HEAP, LARGE, read_memory
from tests.soak.site import Site
from tests.soak.slopes import Bound

INTERVAL_SECONDS = 5.0
DATABASE = "registry.db"
HISTORY = ("audit", "versions", "adapters")
"""Tables that keep what was changed; they grow with each change, and the report says by how much.
Retired versions and deleted adapters keep their rows, as numbers are never used again."""
OVER_TIME = ("usage", "usage_of_days", "usage_of_months", "usage_in_all", "marks")
"""Usage by the hour and the day, which is kept for months; marks of the last 10,000 changes."""
SERIES_OF_AN_ADAPTER = "metric series for each adapter"
_OF_ADAPTER = re.compile(r'[{,]adapter="([^"]+)"')
_MIB = 1 << 20

BOUNDS: dict[str, Bound] = {
    "server process, PSS, MiB": Bound(40, 16),
    "server process, RSS, MiB": Bound(40, 16),
    "engine, PSS, MiB": Bound(40, 16),
    "engine, RSS, MiB": Bound(40, 16),
    "other processes, PSS, MiB": Bound(40, 16),
    **{
        f"{part}, {kind}, MiB": Bound(40, 16)
        for part in ("server process", "engine")
        for kind in (HEAP, LARGE, CODE)
    },
    "processes": Bound(2, 1),
    "file descriptors": Bound(10, 5),
    "threads": Bound(6, 3),
    "adapters' files, MiB": Bound(10, 4),
    "other files, MiB": Bound(10, 8),
    "metric series of no adapter": Bound(100, 50),
    "metric series of versions in memory": Bound(200, 100),
    "rows of what is in service": Bound(40, 20),
}
"""What each series may grow by, in an hour and in all."""


@dataclass(frozen=True)
class Samples:
    """Series of values, and the time of each in seconds."""

    times: list[float] = field(default_factory=list)
    values: dict[str, list[float]] = field(default_factory=dict)
    rows: list[Counter[str]] = field(default_factory=list)
    """How many rows each table of the database has."""
    database_bytes: list[int] = field(default_factory=list)

    def add(self, values: dict[str, float]) -> None:
        """Add a value to each series."""
        self.times.append(time.monotonic())
        for name, value in values.items():
            self.values.setdefault(name, []).append(value)


@dataclass(frozen=True)
class Sampler:
    """Looks at a server every few seconds."""

    site: Site
    samples: Samples = field(default_factory=Samples)

    async def run(self, is_over: Callable[[], bool]) -> None:
        """Take samples until it is over."""
        while not is_over():
            await self.take()
            await asyncio.sleep(INTERVAL_SECONDS)

    async def take(self) -> None:
        """Take one sample of everything."""
        page = await self.site.metrics()
        values, rows, database_bytes = await asyncio.to_thread(self._look)
        self.samples.add(values | series_of(page))
        self.samples.rows.append(rows)
        self.samples.database_bytes.append(database_bytes)

    def _look(self) -> tuple[dict[str, float], Counter[str], int]:
        folder = self.site.server.data_dir
        values = processes(self.site.server.process.pid)
        sizes = Counter[str]()
        for path, num_bytes in files(folder):
            part = path.relative_to(folder).parts[0]
            kind = {"content": "content", DATABASE: "database"}.get(part, "other")
            sizes[kind] += num_bytes
        values["adapters' files, MiB"] = sizes["content"] / _MIB
        values["other files, MiB"] = sizes["other"] / _MIB
        rows = rows_of(folder / DATABASE)
        in_service = [n for table, n in rows.items() if table not in (*HISTORY, *OVER_TIME)]
        values["rows of what is in service"] = sum(in_service)
        return values, rows, sizes["database"]


def series_of(page: str) -> dict[str, float]:
    """Return how many series a page of metrics has.

    Those of adapters, at most a thousand, come one after the other: for each endpoint, status code
    and tier that an adapter's requests meet. So they are counted for each adapter.
    """
    lines = [line for line in page.splitlines() if not line.startswith("#")]
    in_memory = [line for line in lines if 'version="' in line or 'adapter_name="' in line]
    adapters = [found[1] for line in lines if (found := _OF_ADAPTER.search(line))]
    of_adapters = len(adapters) - sum(bool(_OF_ADAPTER.search(line)) for line in in_memory)
    return {
        "metric series of no adapter": float(len(lines) - len(in_memory) - of_adapters),
        "metric series of versions in memory": float(len(in_memory)),
        SERIES_OF_AN_ADAPTER: of_adapters / max(1, len(set(adapters))),
    }


def processes(pid: int) -> dict[str, float]:
    """Return what a server's processes take, each in its part."""
    totals: Counter[str] = Counter()
    mib: Counter[str] = Counter({"other processes, PSS, MiB": 0})
    root = psutil.Process(pid)
    for process in [root, *root.children(recursive=True)]:
        try:
            memory, command = read_memory(process.pid), " ".join(process.cmdline())
            totals["file descriptors"] += process.num_fds()
            totals["threads"] += process.num_threads()
        except (psutil.NoSuchProcess, ProcessLookupError, FileNotFoundError):
            continue  # a worker for one composition or grammar
        totals["processes"] += 1
        part = "other processes"
        if process == root:
            part = "server process"
        elif "EngineCore" in command:
            part = "engine"
        mib[f"{part}, PSS, MiB"] += memory.pss
        if part != "other processes":
            mib[f"{part}, RSS, MiB"] += memory.rss
            for kind, num_bytes in memory.private.items():
                mib[f"{part}, {kind}, MiB"] += num_bytes
    sizes = {name: num_bytes / _MIB for name, num_bytes in mib.items()}
    return sizes | {name: float(count) for name, count in totals.items()}


def files(folder: Path) -> Iterator[tuple[Path, int]]:
    """Yield each file below a folder with its bytes. Files may vanish meanwhile."""
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent) / name
            try:
                num_bytes = path.lstat().st_size
            except FileNotFoundError:
                continue
            yield path, num_bytes


def rows_of(database: Path) -> Counter[str]:
    """Return how many rows each table of a SQLite database has."""
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        tables = [name for (name,) in names if not name.startswith(("sqlite_", "alembic_"))]
        counts = {
            table: connection.execute(f'SELECT count(*) FROM "{table}"').fetchone()[0]
            for table in tables
        }
    connection.close()
    return Counter(counts)
