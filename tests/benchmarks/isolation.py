"""What "not mine" and "not there" take, and what keys and quotas cost each request.

python -m tests.benchmarks.isolation

Prints one JSON object. Requests for another tenant's adapter and for none take turns, in random
order, through the whole app on a fake engine. `auc` is how often "not mine" takes longer (0.5: as
often as not), `p` the probability that times as different come by chance (Mann-Whitney).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import random
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from shutil import copytree
from typing import Any

import httpx
import numpy as np

from adapters_registry.check.base import BaseSpec
from adapters_registry.content.store import ContentStore
from adapters_registry.records.keys import INFERENCE
from adapters_registry.records.tenants import Quota, create_tenant
from adapters_registry.registry import Registry
from server.api.resolve import resolve
from server.app import build_server
from server.auth import Keys
from server.errors import ModelNotFound
from server.settings import Settings
from server.tenancy.demand import Demand
from server.tenancy.quotas import Quotas
from tests.adapter_recipe import Recipe
from tests.server.fake_engine import FakeEngine
from tests.tiny import TINY_BASE

NUM_REQUESTS = 3000
NUM_CALLS = 20_000
ABSENT = ("acme/bot", "acme/bat")


def open_registry(folder: Path) -> tuple[Registry, str]:
    """A registry with the adapter acme/bot, and another tenant's key."""
    base = BaseSpec.from_config("tiny", TINY_BASE, max_rank=8)
    registry = Registry(f"sqlite:///{folder / 'r.db'}", ContentStore(folder / "content"), base)
    for tenant in ("acme", "other"):
        registry.apply(create_tenant, tenant)
    source = Recipe().make(folder / "adapter", base, 0)
    stage = partial(copytree, source, dirs_exist_ok=True)
    version, _ = registry.register("acme", "bot", "test", stage)
    registry.accept(version, registry.check_files(version))
    return registry, Keys(registry).create("other", [INFERENCE, "adapters"])


async def time_requests(registry: Registry, key: str, method: str, path: str) -> dict[str, Any]:
    """Both requests, so often, in random order."""
    app = build_server(Settings(), registry, FakeEngine()).app
    times: dict[str, list[float]] = {name: [] for name in ABSENT}
    transport = httpx.ASGITransport(app)
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(
        transport=transport, base_url="http://x", headers=headers
    ) as client:
        for number in range(NUM_REQUESTS + 100):
            for name in random.sample(ABSENT, 2):
                body = {"model": name} if method == "POST" else None
                url = path.format(name=name)
                started = time.perf_counter()
                response = await client.request(method, url, json=body)
                took = time.perf_counter() - started
                assert response.status_code == 404
                if number >= 100:
                    times[name].append(took)
    there, absent = (np.array(times[name]) for name in ABSENT)
    return {
        "not_mine_median_us": round(1e6 * float(np.median(there)), 1),
        "not_there_median_us": round(1e6 * float(np.median(absent)), 1),
        **mann_whitney(there, absent),
    }


def mann_whitney(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """The share of pairs in which `a` is larger, and the two-sided p (normal approximation)."""
    ranks = np.argsort(np.argsort(np.concatenate([a, b]))) + 1
    u = float(ranks[: len(a)].sum()) - len(a) * (len(a) + 1) / 2
    mean = len(a) * len(b) / 2
    deviation = math.sqrt(len(a) * len(b) * (len(a) + len(b) + 1) / 12)
    return {
        "auc": round(u / (len(a) * len(b)), 4),
        "p": round(math.erfc(abs(u - mean) / deviation / math.sqrt(2)), 4),
    }


def time_admission(registry: Registry, key: str) -> float:
    """Median µs of a key's check, a name's resolution and both ends of a quota."""
    keys, quotas = Keys(registry), Quotas()
    quota = Quota(requests_per_minute=1 << 40, tokens_per_minute=1 << 40, concurrent_requests=9)
    demand = Demand(1, 1, prompt_tokens=5, longest_prompt_characters=20, answer_tokens=5)
    times = []
    for _ in range(NUM_CALLS):
        started = time.perf_counter()
        caller = keys.authenticate(key)
        held = quotas.enter(caller.tenant, quota, demand, time.monotonic())
        with contextlib.suppress(ModelNotFound):
            resolve("acme/bot", caller, registry.catalog, "base")
        quotas.leave(held, 5, 5, time.monotonic())
        quotas.headers(caller.tenant, quota, time.monotonic())
        times.append(time.perf_counter() - started)
    return round(1e6 * statistics.median(times), 1)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        registry, key = open_registry(Path(folder))
        chat = time_requests(registry, key, "POST", "/v1/chat/completions")
        admin = time_requests(registry, key, "GET", "/admin/adapters/{name}")
        result = {
            "admission_median_us": time_admission(registry, key),
            "chat": asyncio.run(chat),
            "admin": asyncio.run(admin),
        }
        registry.close()
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
