"""What an operator gives a release, and what its clients do."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from adapters_registry.check.base import BaseSpec
from adapters_registry.content.adapter_files import ADAPTER_FILES
from server.bundled_base import ensure_bundled_base
from tests.adapter_recipe import Recipe
from tests.deploy.cluster.cluster import Cluster
from tests.deploy.cluster.sandbox import Image
from tests.deploy.load import Load, ask_on, streamed
from tests.deploy.proxies import envoy_program
from tests.deploy.replica import NUM_TOKENS
from tests.tiny import TINY_BASE

SERVICE = "demo-loraplex"
KEY = f"lpx-{'0' * 12}-{'0a' * 32}"
ADAPTERS = [f"adapter{number}" for number in range(4)]
CLIENTS = 8
"""Half of them keep their connections, the others make one for each request."""
FOLLOWS_SECONDS = 120


@dataclass(frozen=True)
class Form:
    """With which engine, with which values, and how long things take."""

    entrypoint: list[str]
    values: Mapping[str, Any]
    ready_seconds: float
    joined: bool
    """Whether an event of a stream may have several tokens."""

    def image(self, name: str) -> Image:
        """Return what stands for an image."""
        if name.startswith("envoyproxy/"):
            return Image([str(envoy_program())])
        return Image(self.entrypoint, ["serve"])

    def base(self) -> BaseSpec:
        if self.joined:
            return BaseSpec.from_directory(ensure_bundled_base(), max_rank=16)
        return BaseSpec.from_config("tiny", TINY_BASE, max_rank=16)


FORMS = {
    "fake": Form(
        [sys.executable, "-m", "tests.deploy.cluster.fake_server"],
        {"preStopSeconds": 5, "settings": {"notice_seconds": 3, "drain_seconds": 3}},
        ready_seconds=240,
        joined=False,
    ),
    "real": Form(["loraplex"], {}, ready_seconds=300, joined=True),
}


def secrets(database: str, s3: Mapping[str, str]) -> dict[str, Mapping[str, str]]:
    """Return the Secrets that `values.yaml` names."""
    return {
        "loraplex-database": {"url": database},
        "loraplex-admin": {"key": KEY},
        "loraplex-console": {"secret": "0b" * 32},
        "loraplex-s3": s3,
    }


def keep_bundled_base(claims: Path, names: list[str]) -> None:
    """Put the converted base into the servers' volumes, where they would make it in 20 seconds."""
    base = ensure_bundled_base()
    below = base.relative_to(base.parents[3])
    for name in names:
        shutil.copytree(base, claims / name / "cache" / below, copy_function=os.link)


async def register(cluster: Cluster, form: Form, folder: Path) -> None:
    """Upload the adapters through the Service, and wait until every server answers for each."""
    async with client(cluster) as http:
        await _until_reached(http)
        for seed, name in enumerate(ADAPTERS):
            directory = Recipe().make(folder / name, form.base(), seed)
            files = [("files", (f, (directory / f).read_bytes())) for f in ADAPTER_FILES]
            path = "/admin/adapters"
            answer = await http.post(path, data={"name": name}, files=files)
            assert answer.is_success, answer.text
        async with asyncio.timeout(FOLLOWS_SECONDS):
            for pod in cluster.servers():
                for name in ADAPTERS:
                    await _until_answered(http, f"http://{pod.address}:8000", name)


async def _until_reached(http: httpx.AsyncClient) -> None:
    """Wait until the proxies know the servers: they ask for their names every five seconds.

    Without proxies a busy machine's pod may miss a probe, and a Service without pods refuses.
    """
    async with asyncio.timeout(FOLLOWS_SECONDS):
        while not await _is_reached(http):
            await asyncio.sleep(0.2)


async def _is_reached(http: httpx.AsyncClient) -> bool:
    try:
        return (await http.get("/readyz")).status_code == 200
    except httpx.TransportError:
        return False


async def _until_answered(http: httpx.AsyncClient, url: str, name: str) -> None:
    while True:
        try:
            await streamed(http, url, f"default/{name}@1", 1)
        except (AssertionError, httpx.HTTPError):
            await asyncio.sleep(0.2)
        else:
            return


def client(cluster: Cluster, **more: Any) -> httpx.AsyncClient:
    """Return a client of the Service."""
    headers = {"Authorization": f"Bearer {KEY}"}
    url = f"http://{cluster.addresses[SERVICE]}"
    return httpx.AsyncClient(base_url=url, headers=headers, timeout=120, **more)


@asynccontextmanager
async def under_load(cluster: Cluster, form: Form) -> AsyncIterator[Load]:
    """Have clients stream through the Service until the context ends."""
    load = Load(CLIENTS)

    async def ask(number: int) -> None:
        kept = None if number % 2 else 0
        limits = httpx.Limits(max_keepalive_connections=kept)
        model = f"default/{ADAPTERS[number % len(ADAPTERS)]}@1"
        async with client(cluster, limits=limits) as http:
            await ask_on(http, "", model, load, NUM_TOKENS, joined=form.joined)

    clients = [asyncio.create_task(ask(number)) for number in range(CLIENTS)]
    await load.more()
    yield load
    load.ended = True
    await asyncio.gather(*clients)
