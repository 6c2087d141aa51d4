"""Fixtures shared by all tests: a tiny base, adapters made for it, and one real server."""

from __future__ import annotations

import gc
import os
import uuid
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path
from shutil import copyfile
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler.loadscope import LoadScopeScheduling

from adapters_registry.check.base import BaseSpec
from adapters_registry.content.store import ContentStore
from adapters_registry.records.database import open_database
from adapters_registry.registry import Registry
from server.engine import environment
from tests.adapter_recipe import Recipe
from tests.oci_server import OciServer
from tests.oci_server import program as oci_program
from tests.postgres import Postgres, programs
from tests.s3_server import S3Server
from tests.tiny import TINY_BASE, AdapterFactory

# By default an example of a property may take 0.2 s, and busy machines need longer.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


def pytest_configure() -> None:
    """Have all engines keep what they compile in one folder, the one that has the bundled base.

    Each would have a folder of its own in its data folder, and compile for 9 to 15 s.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    os.environ["XDG_CACHE_HOME"] = cache
    # For kernels that are tested without an engine.
    os.environ.setdefault(environment.KERNEL_CACHE, f"{cache}/loraplex/kernels")
    gc.disable()


def pytest_collection_finish() -> None:
    """Exempt all that was imported from garbage collection, and collect what comes after.

    While a million objects are made that stay, there is nothing to find.
    """
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI a test that skips for want of a program fails: `.ci/run` installs those programs."""
    report = yield
    reason = str(call.excinfo.value) if call.excinfo else ""
    if report.skipped and os.environ.get("CI") == "true" and "Debian's package" in reason:
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} would be skipped in CI: {reason}"
    return report


ENGINES = {
    **dict.fromkeys(("test_mixed_batch", "test_poison"), "random_engine"),
    **dict.fromkeys(
        (
            *("test_base_kernels", "test_bases", "test_bases_in_float32", "test_churn"),
            *("test_first_hour", "test_four_bit", "test_gpu_operators", "test_judged_canary"),
            *("test_llama31", "test_loading", "test_long_requests", "test_process"),
            *("test_request_sources", "test_speculation", "test_staged", "test_warm_promotion"),
        ),
        "",
    ),
}
"""The engine that a module of tests/real_engine/ shares, where it isn't `server`; "" is none."""

LONGEST = (
    "tests/real_engine/test_four_bit.py",
    "tests/real_engine/test_staged.py",
    "tests/real_engine/test_process.py",
    "tests/real_engine/test_churn.py",
    "random_engine",
    "tests/chaos/test_chaos.py",
    "tests/real_engine/test_loading.py",
    "tests/real_engine/test_bases.py",
    "tests/real_engine/test_llama31.py",
    "tests/real_engine/test_judged_canary.py",
    "tests/real_engine/test_long_requests.py",
    "tests/real_engine/test_request_sources.py",
    "tests/real_engine/test_gpu_operators.py",
    "tests/server/engine/worker/lora_gpu/test_in_interpreter.py",
    "tests/server/test_fuzzing.py",
    "tests/training/run/test_train.py",
    "tests/adapters_registry/test_crashes.py",
)
"""Groups of few tests that take long. They begin early, so that no worker waits for another."""


def group_of(nodeid: str) -> str:
    """Return the group that a test is dealt out with: its engine's name, or the path of its file.

    The tests of one engine share a worker, since each worker would start one of its own.
    """
    path = nodeid.split("::", 1)[0]
    folder, _, file = path.rpartition("/")
    if not folder.startswith("tests/real_engine"):
        return path
    return ENGINES.get(file.removesuffix(".py"), "server") or path


class Groups(LoadScopeScheduling):  # type: ignore[misc]
    """Deals out the tests to the workers of `make test` group by group, as they are collected."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Groups:
    """Return the scheduler that `pytest -n 2` uses."""
    config.option.loadscopereorder = False
    return Groups(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In `pytest -n 2` put those groups first that take longest."""
    if not hasattr(config, "workerinput"):
        return
    sizes = Counter(group_of(item.nodeid) for item in items)
    order = {group: number for number, group in enumerate(("server", *LONGEST))}

    def place(item: pytest.Item) -> tuple[int, int, str]:
        group = group_of(item.nodeid)
        return order.get(group, len(order)), -sizes[group], group

    items.sort(key=place)


@pytest.fixture(scope="session")
def tiny_base() -> BaseSpec:
    return BaseSpec.from_config("tiny", TINY_BASE, max_rank=8)


@pytest.fixture
def make_adapter(tmp_path: Path, tiny_base: BaseSpec) -> AdapterFactory:
    """Make an adapter directory for the tiny base; arguments (`Recipe`) bend it out of shape."""
    count = 0

    def make(*, seed: int = 0, **recipe: Any) -> Path:
        nonlocal count
        count += 1
        return Recipe(**recipe).make(tmp_path / f"adapter{count}", tiny_base, seed)

    return make


@pytest.fixture(scope="session")
def newest_schema(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file with the newest schema and nothing in it, for tests to copy.

    All migrations take 0.2 s of processor time, and thousands of tests need a database.
    """
    file = tmp_path_factory.mktemp("schema") / "registry.db"
    open_database(f"sqlite:///{file}").dispose()
    return file


@pytest.fixture
def sqlite_url(tmp_path: Path, newest_schema: Path) -> str:
    """A new, empty database in a file."""
    return f"sqlite:///{copyfile(newest_schema, tmp_path / 'registry.db')}"


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """A new, empty database. Tests that run on several kinds override this."""
    return sqlite_url


@pytest.fixture
def registry(tmp_path: Path, tiny_base: BaseSpec, database_url: str) -> Iterator[Registry]:
    registry = Registry(database_url, ContentStore(tmp_path / "content"), tiny_base)
    yield registry
    registry.close()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    folder = programs()
    if folder is None:
        pytest.skip("PostgreSQL isn't installed (Debian's package postgresql)")
    server = Postgres(folder)
    yield server
    server.stop()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    server = S3Server()
    yield server
    server.stop()


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty prefix on a real S3 server, which the environment leads to."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://test/{uuid.uuid4().hex}"


@pytest.fixture(scope="session")
def oci_server() -> Iterator[OciServer]:
    """A real registry that anybody may read and write."""
    if oci_program() is None:
        pytest.skip("there is no registry (Debian's package docker-registry)")
    server = OciServer()
    yield server
    server.stop()
