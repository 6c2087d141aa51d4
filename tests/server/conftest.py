from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from shutil import copytree

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI
from starlette.routing import BaseRoute
from starlette.types import Receive, Scope, Send

from adapters_registry.records.catalog import VersionRecord
from adapters_registry.registry import Registry
from server.app import Server, build_server
from server.auth import Keys
from server.console.app import build_console
from server.console.parts import Services
from server.lifecycle import Lifecycle
from server.residency.leases import Leases
from server.settings import Settings
from tests.server.fake_engine import FakeEngine
from tests.tiny import AdapterFactory


class ConsoleOnRequest:
    """The console, which is put together when it is asked for.

    That is two fifths of making a server, and most of these servers get no request for it.
    """

    def __init__(self, services: Services, secret: bytes) -> None:
        self._services, self._secret = services, secret

    @cached_property
    def _app(self) -> FastAPI:
        return build_console(self._services, self._secret)

    @property
    def routes(self) -> list[BaseRoute]:
        return self._app.routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


@pytest.fixture(scope="package", autouse=True)
def console_on_request() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("server.app.build_console", ConsoleOnRequest)
        yield


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def keys(registry: Registry) -> Keys:
    return Keys(registry)


@pytest.fixture
def lifecycle() -> Lifecycle:
    return Lifecycle()


@pytest.fixture
def leases(engine: FakeEngine, registry: Registry) -> Leases:
    return Leases.of(Settings(max_loras=4), engine, registry)


@pytest.fixture
def clock() -> Callable[[], float]:
    """What the quotas' seconds are taken from. Tests that count them have a clock of their own."""
    return time.monotonic


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, local_roots=(tmp_path,), max_loras=4, max_adapter_mib=1)


@pytest.fixture
def server(
    settings: Settings,
    registry: Registry,
    keys: Keys,
    engine: FakeEngine,
    leases: Leases,
    lifecycle: Lifecycle,
    clock: Callable[[], float],
) -> Server:
    return build_server(
        settings, registry, engine, keys=keys, leases=leases, lifecycle=lifecycle, clock=clock
    )


@pytest.fixture
def app(server: Server) -> FastAPI:
    return server.app


@pytest_asyncio.fixture
async def client(app: FastAPI, keys: Keys) -> AsyncIterator[httpx.AsyncClient]:
    """A client with an admin key."""
    key = keys.create("default", ["admin", "inference"])
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app, raise_app_exceptions=False),
        base_url="http://loraplex",
        headers={"Authorization": f"Bearer {key}"},
    ) as client:
        yield client


@pytest.fixture
def home(registry: Registry, make_adapter: AdapterFactory) -> VersionRecord:
    """A registered, ready adapter."""
    source = make_adapter()
    stage = partial(copytree, source, dirs_exist_ok=True)
    version, _ = registry.register("default", "home", "test", stage)
    return registry.accept(version, registry.check_files(version))
