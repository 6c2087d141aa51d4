"""Loads one name again and again by vLLM's route, and prints the server's memory.

python -m tests.benchmarks.loads_by_name 200

The server is a process of its own with a fake engine: what is measured is everything of ours but
the engine. Each load has files of its own, saved over those of the load before, and is asked for
during the load and after it. The answers must be by the version of their moment.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
from pathlib import Path
from statistics import linear_regression, median

import httpx
import psutil

from adapters_registry.check.base import BaseSpec
from adapters_registry.content.adapter_files import CONFIG_FILE
from tests.adapter_recipe import Recipe
from tests.deploy.proxies import free_port
from tests.deploy.replica import Replica
from tests.deploy.versions import CONTENT, database_in, register_versions
from tests.tiny import TINY_BASE

ADAPTERS = 5
TIMEOUT_SECONDS = 120


async def run(replica: Replica, key: str, adapters: list[Path], saved: Path, loads: int) -> None:
    """Load, ask, and print the server's memory by thirds, and what is collected at the end."""
    server, sizes = psutil.Process(replica.process.pid), []
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(
        base_url=replica.url, headers=headers, timeout=TIMEOUT_SECONDS
    ) as http:

        async def ask() -> str:
            body = {"model": "policy", "stream": True}
            answer = await http.post("/v1/completions", json=body)
            return str(answer.headers.get("x-adapter-version", "none yet"))

        for step in range(1, loads + 1):
            shutil.copytree(adapters[step % ADAPTERS], saved, dirs_exist_ok=True)
            with (saved / CONFIG_FILE).open("a") as config:
                config.write(" " * step)  # so that each load has a content of its own
            during = asyncio.create_task(ask())
            body = {"lora_name": "policy", "lora_path": str(saved), "load_inplace": True}
            loaded = await http.post("/v1/load_lora_adapter", json=body)
            assert loaded.status_code == 200, loaded.text
            assert await ask() == str(step)
            assert await during in (str(step - 1), str(step), "none yet")
            sizes.append(server.memory_info().rss)
        rows = (await http.get("/admin/residency")).json()["data"]
        collected = (await http.post("/admin/garbage")).json()["disk"]
    third = loads // 3
    medians = [median(sizes[start : start + third]) / 1e6 for start in (0, third, 2 * third)]
    slope = linear_regression(range(loads - third), sizes[third:]).slope / 1e3
    print(f"memory by thirds: {', '.join(f'{size:.1f}' for size in medians)} MB")
    print(f"growth over the last two thirds: {slope:.0f} kB a load")
    print(f"versions in the engine: {[row['model'] for row in rows]}")
    print(f"superseded files that a collection removed: {collected['adapters']} adapters'")


def main(loads: int) -> None:
    """Start a server, measure, and leave nothing behind."""
    base = BaseSpec.from_config("tiny", TINY_BASE, max_rank=8)
    with tempfile.TemporaryDirectory(prefix="loads-by-name-") as name:
        folder = Path(name)
        key = register_versions(folder, 1)
        adapters = [Recipe().make(folder / f"step{seed}", base, seed) for seed in range(ADAPTERS)]
        (folder / "loras").mkdir()
        roots = {"LORAPLEX_LOCAL_ROOTS": str(folder / "loras")}
        place = database_in(folder), folder / CONTENT
        replica = Replica(free_port(), *place, environment=roots)
        try:
            replica.wait_until_ready()
            asyncio.run(run(replica, key, adapters, folder / "loras" / "policy", loads))
        finally:
            replica.kill()


if __name__ == "__main__":
    main(int(sys.argv[1]))
