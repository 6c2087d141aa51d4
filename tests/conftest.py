"""Fixtures shared by all tests: a tiny base, adapters made for it, and one real server."""

from __future__ import annotations

import os
import uuid
from collections.abc import Generator, Iterator
from pathlib import Path
from shutil import copyfile
from typing import Any

import pytest
from xdist.scheduler.loadscope import LoadScopeScheduling

from adapters_registry.check.base import BaseSpec
from adapters_registry.content.store import ContentStore
from adapters_registry.records.database import open_database
from adapters_registry.registry import Registry
from tests.adapter_recipe import Recipe
from tests.oci_server import OciServer
from tests.oci_server import program as oci_program
from tests.postgres import Postgres, programs
from tests.s3_server import S3Server
from tests.tiny import TINY_BASE, AdapterFactory


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


OWN_ENGINES = (
    *("test_bases", "test_first_hour", "test_four_bit", "test_judged_canary"),
    *("test_process", "test_request_sources", "test_staged"),
)
"""How the names begin of the files in tests/real_engine/ that start engines of their own."""


class FilesAndEngines(LoadScopeScheduling):  # type: ignore[misc]
    """Deal out the tests to the workers of `make test` file by file, most engines' files as one.

    The tests of the real engine share one, so they run on one worker. This group takes longest:
    `schedule` begins with the groups that have the most tests. Files that start engines of their
    own come last, on whichever worker is free.
    """

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.split("::", 1)[0]
        folder, _, name = path.rpartition("/")
        shares = folder.startswith("tests/real_engine") and not name.startswith(OWN_ENGINES)
        return "engine" if shares else path


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FilesAndEngines:
    """Return the scheduler that `pytest -n 2` uses."""
    return FilesAndEngines(config, log)


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
