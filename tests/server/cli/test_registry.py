"""`loraplex registry` on a data folder, as a person would call it."""

import fcntl
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from adapters_registry.check.base import BaseSpec
from adapters_registry.content.adapter_files import WEIGHTS_FILE
from adapters_registry.content.origin import Origin
from adapters_registry.content.store import ContentStore
from adapters_registry.records.retirement import retire_version
from adapters_registry.registry import Registry
from server.cli.main import app
from server.settings import SettingsError
from tests.adapters_registry.adapters import register
from tests.tiny import AdapterFactory


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LORAPLEX_DATA_DIR", str(tmp_path / "var"))
    (tmp_path / "var").mkdir()
    return tmp_path / "var"


@pytest.fixture
def registry(data_dir: Path, tiny_base: BaseSpec) -> Iterator[Registry]:
    url = f"sqlite:///{data_dir / 'registry.db'}"
    registry = Registry(url, ContentStore(data_dir / "content"), tiny_base)
    yield registry
    registry.close()


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["registry", *arguments])
    assert result.exit_code == code, result.output
    return result.stdout


def retired(registry: Registry, make_adapter: AdapterFactory) -> tuple[str, str]:
    """The digests of a version in use and of a retired one."""
    used = register(registry, make_adapter(seed=1))
    old = register(registry, make_adapter(seed=2))
    registry.apply(retire_version, "default", "home", old.number)
    return used.digest, old.digest


def test_gc(registry: Registry, make_adapter: AdapterFactory) -> None:
    used, old = retired(registry, make_adapter)
    size = registry.content.sizes()[old]
    garbage = [{"where": "disk", "digest": old, "size_bytes": size}]
    expected = {"dry_run": True, "garbage": garbage, "size_bytes": size}
    assert json.loads(run("gc", "--dry-run", "--json")) == expected
    assert registry.content.path(old).is_dir()
    assert old[:12] in run("gc", "--dry-run")
    assert json.loads(run("gc", "--json")) == expected | {"dry_run": False}
    assert not registry.content.path(old).exists()
    assert registry.content.path(used).is_dir()
    assert "0.0 MB were removed" in run("gc")


def test_gc_at_the_origin(
    registry: Registry, make_adapter: AdapterFactory, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.content.origin = origin = Origin(s3)
    used, old = retired(registry, make_adapter)
    monkeypatch.setenv("LORAPLEX_ORIGIN", s3)
    assert [row["where"] for row in json.loads(run("gc", "--json"))["garbage"]] == ["disk"]
    assert set(origin.sizes()) == {used, old}
    assert [r["digest"] for r in json.loads(run("gc", "--origin", "--json"))["garbage"]] == [old]
    assert set(origin.sizes()) == {used}


def test_verify(registry: Registry, make_adapter: AdapterFactory) -> None:
    sound = register(registry, make_adapter(seed=1)).digest
    damaged = register(registry, make_adapter(seed=2)).digest
    lost = register(registry, make_adapter(seed=3)).digest
    assert "3 checked, 0 not as they should be" in run("verify")
    weights = registry.content.path(damaged) / WEIGHTS_FILE
    weights.chmod(0o644)
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    registry.content.discard(lost)
    found = json.loads(run("verify", "--json", code=1))
    assert found["sound"] is False
    assert {row["digest"]: (row["state"], row["versions"]) for row in found["content"]} == {
        sound: ("sound", ["default/home@1"]),
        damaged: ("damaged", ["default/home@2"]),
        lost: ("missing", ["default/home@3"]),
    }
    assert "3 checked, 2 not as they should be" in run("verify", code=1)


@pytest.mark.parametrize("command", ["gc", "verify"])
def test_refused_while_a_server_runs(registry: Registry, data_dir: Path, command: str) -> None:
    with (data_dir / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = CliRunner().invoke(app, ["registry", command])
    assert isinstance(result.exception, SettingsError)
    assert "another server uses" in str(result.exception)


def test_folders_and_databases_that_are_not_the_servers(
    registry: Registry,
    make_adapter: AdapterFactory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result = CliRunner().invoke(app, ["registry", "gc", "--data-dir", str(tmp_path / "none")])
    assert "no registry in" in str(result.exception)
    assert not (tmp_path / "none").exists()
    result = CliRunner().invoke(app, ["registry", "gc", "--origin"])
    assert "LORAPLEX_ORIGIN isn't set" in str(result.exception)
    digest = register(registry, make_adapter()).digest
    monkeypatch.setenv("LORAPLEX_DATABASE_URL", f"sqlite:///{tmp_path / 'other.db'}")
    run("gc", code=1)
    assert registry.content.path(digest).is_dir()


def test_migrate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = tmp_path / "new.db"
    monkeypatch.setenv("LORAPLEX_DATABASE_URL", f"sqlite:///{database}")
    for _ in range(2):
        run("migrate")
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("SELECT count(*) FROM adapters").fetchone() == (0,)
    monkeypatch.setenv("LORAPLEX_DATABASE_URL", f"sqlite:///{tmp_path / 'none' / 'new.db'}")
    run("migrate", code=1)
