"""What the registry costs with 10,000 adapters of three versions each.

    python -m tests.benchmarks.registry [DATABASE_URL]

Prints a table; without a URL it uses a new SQLite file.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import httpx
from rich.console import Console
from rich.table import Table
from sqlalchemy import insert

from adapters_registry.check.base import BaseSpec
from adapters_registry.content.store import ContentStore
from adapters_registry.records.aliases import point_alias
from adapters_registry.records.catalog import Target
from adapters_registry.records.tables import Adapter, Alias, Version, VersionState
from adapters_registry.registry import Registry
from loadtest.drive.random_adapters import LlamaShape, make_adapter
from server.api.resolve import resolve
from server.app import build_server
from server.auth import Caller, Keys
from server.settings import Settings
from tests.server.fake_engine import FakeEngine

NUM_ADAPTERS, NUM_VERSIONS = 10_000, 3
SMOLLM2 = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "num_hidden_layers": 30,
}
RANK_OF_10_MB = 8


def main() -> None:
    """Fill a registry and time what servers and operators do with it."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        url = sys.argv[1] if len(sys.argv) > 1 else f"sqlite:///{root / 'registry.db'}"
        base = BaseSpec.from_config("SmolLM2-135M", SMOLLM2, max_rank=16)
        content = ContentStore(root / "content")
        registry = Registry(url, content, base)
        fill(registry)
        rows = {"open with everything": timed(lambda: Registry(url, content, base).close(), 3)}
        registry = Registry(url, content, base)
        rows |= measure_names(registry)
        rows |= asyncio.run(measure_http(registry, root))
        registry.close()
    table = Table("with 10,000 adapters of 3 versions", "median")
    for what, seconds in rows.items():
        table.add_row(
            what, f"{seconds * 1e3:.1f} ms" if seconds > 1e-3 else f"{seconds * 1e6:.1f} µs"
        )
    Console().print(table)


def fill(registry: Registry) -> None:
    """Records without content: only names are asked for here."""
    with registry.change() as change:
        numbers = range(1, NUM_ADAPTERS + 1)
        adapters = [
            {
                "id": n,
                "tenant": "default",
                "name": f"adapter-{n:05}",
                "last_number": NUM_VERSIONS,
                "epoch": change.epoch,
            }
            for n in numbers
        ]
        versions = [
            {
                "adapter_id": n,
                "number": number,
                "digest": f"{n * 10 + number:064x}",
                "size_bytes": 10_000_000,
                "rank": 8,
                "state": VersionState.READY,
                "source": "benchmark",
            }
            for n in numbers
            for number in range(1, NUM_VERSIONS + 1)
        ]
        aliases = [
            {"adapter_id": n, "name": "live", "targets": [[3, 100]], "revision": 1} for n in numbers
        ]
        change.session.execute(insert(Adapter), adapters)
        change.session.execute(insert(Version), versions)
        change.session.execute(insert(Alias), aliases)


def measure_names(registry: Registry) -> dict[str, float]:
    """Resolving, and one promotion."""
    caller = Caller("default", frozenset({"inference"}))
    names = [f"adapter-{n * 997 % NUM_ADAPTERS + 1:05}" for n in range(2_000)]
    forms = {"name": "", "name@2": "@2", "name@live": "@live", "name@sha256:…": None}

    def resolve_all(suffix: str | None) -> None:
        for index, name in enumerate(names):
            number = index * 997 % NUM_ADAPTERS + 1
            at = f"@sha256:{number * 10 + 3:064x}" if suffix is None else suffix
            resolve(name + at, caller, registry.catalog, "base", "user")

    rows = {
        f"resolve {form}": timed(lambda suffix=suffix: resolve_all(suffix), 5) / len(names)  # type: ignore[misc]
        for form, suffix in forms.items()
    }
    split = [Target(1, 50), Target(2, 50)]
    registry.apply(point_alias, "default", "adapter-00001", "live", split)
    split_names = ["adapter-00001"] * 2_000
    started = time.perf_counter()
    for name in split_names:
        resolve(name, caller, registry.catalog, "base", "user")
    rows["resolve a split name"] = (time.perf_counter() - started) / len(split_names)
    versions = iter([2, 3] * 50)

    def promote() -> None:
        targets = [Target(next(versions), 100)]
        registry.apply(point_alias, "default", "adapter-05000", "live", targets)

    return rows | {"promote, one transaction": timed(promote, 20)}


async def measure_http(registry: Registry, root: Path) -> dict[str, float]:
    """Pages of the lists, and a registration of 10 MB up to the gate's static verdict."""
    keys = Keys(registry)
    key = keys.create("default", ["admin", "inference"])
    settings = Settings(data_dir=root, local_roots=(root,))
    app = build_server(settings, registry, FakeEngine(), keys=keys).app
    headers = {"Authorization": f"Bearer {key}"}
    transport = httpx.ASGITransport(app)
    pages = {
        "list the first page of 100": "?limit=100",
        "list a page of 1,000": "?limit=1000",
        "list by size, descending": "?sort=-size",
        "list with a search": "?search=0999",
    }
    async with httpx.AsyncClient(
        transport=transport, base_url="http://loraplex", headers=headers
    ) as client:
        rows = {}
        for what, query in pages.items():
            rows[what] = await timed_request(client, "GET", f"/admin/adapters{query}")
        shape = LlamaShape.from_config(SMOLLM2)
        times = []
        for seed in range(5):
            directory = root / f"new-{seed}"
            make_adapter(directory, shape, rank=RANK_OF_10_MB, seed=seed)
            body = {"name": f"new-{seed}", "source": str(directory)}
            started = time.perf_counter()
            answer = await client.post("/admin/adapters?wait=true", json=body)
            times.append(time.perf_counter() - started)
            assert answer.status_code == 201, answer.text
        size = answer.json()["size_bytes"] / 1e6
        return rows | {f"register {size:.0f} MB, canary apart": median(times)}


async def timed_request(client: httpx.AsyncClient, method: str, path: str) -> float:
    """The median of five requests, in seconds."""
    times = []
    for _ in range(5):
        started = time.perf_counter()
        (await client.request(method, path)).raise_for_status()
        times.append(time.perf_counter() - started)
    return median(times)


def timed(work: Callable[[], None], repeat: int) -> float:
    """The median of some runs, in seconds."""
    times = []
    for _ in range(repeat):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return median(times)


if __name__ == "__main__":
    main()
