"""Checks of the data folder, the database, the origin and files that settings name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters_registry.records.database import connect, open_database
from adapters_registry.records.migrations import Schema, schema_of, upgrade
from server.doctor import storage
from server.doctor.finding import Finding, Severity
from server.process.data_dir import own_data_dir
from server.settings import Settings
from tests.postgres import Postgres


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "var")


def of(findings: Iterator[Finding], subject: str) -> Finding:
    (found,) = [finding for finding in findings if finding.subject == subject]
    return found


def test_the_data_folder_is_looked_at_and_not_made(settings: Settings) -> None:
    assert of(storage.check_data_folder(settings), "data folder").severity is Severity.OK
    assert not settings.data_dir.exists()


def test_a_folder_of_a_running_server_is_no_problem(settings: Settings) -> None:
    with own_data_dir(settings):
        found = of(storage.check_data_folder(settings), "data folder")
        assert found.severity is Severity.OK
        assert "a running server uses" in found.text
    assert "running server" not in of(storage.check_data_folder(settings), "data folder").text


def test_a_folder_that_cannot_be_made_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    settings = Settings(data_dir=tmp_path / "file" / "var")
    found = of(storage.check_data_folder(settings), "data folder")
    assert found.severity is Severity.PROBLEM
    assert found.text == f"{tmp_path / 'file'} is not a folder"
    assert "LORAPLEX_DATA_DIR" in found.remedy


@pytest.mark.parametrize(
    ("free_gib", "budget_gib", "severity"),
    [
        (0.5, None, Severity.PROBLEM),
        (5, None, Severity.WARNING),
        (5, 4, Severity.OK),
        (50, 60, Severity.WARNING),
        (50, None, Severity.OK),
    ],
)
def test_room_on_the_disk(
    tmp_path: Path, free_gib: float, budget_gib: float | None, severity: Severity
) -> None:
    settings = Settings(data_dir=tmp_path, disk_budget_gib=budget_gib)
    found = of(storage.check_data_folder(settings, lambda _: int(free_gib * (1 << 30))), "disk")
    assert found.severity is severity
    assert bool(found.remedy) == (severity is not Severity.OK)


def test_adapters_that_are_there_count_against_the_budget(tmp_path: Path) -> None:
    kept = tmp_path / "content" / "sha256" / "ab" / "abc" / "adapter_model.safetensors"
    kept.parent.mkdir(parents=True)
    with kept.open("wb") as file:
        file.truncate(11 << 30)  # a hole takes no room
    settings = Settings(data_dir=tmp_path, disk_budget_gib=60)
    found = of(storage.check_data_folder(settings, lambda _: 50 << 30), "disk")
    assert found.severity is Severity.OK


def test_a_database_that_is_not_there_yet(settings: Settings) -> None:
    found = of(storage.check_database(settings), "database")
    assert found.severity is Severity.OK
    assert "the first start makes" in found.text
    assert not settings.data_dir.exists()


def test_a_database_of_each_age(settings: Settings) -> None:
    settings.data_dir.mkdir()
    open_database(settings.records_url).dispose()
    assert "up to date" in of(storage.check_database(settings), "database").text
    engine = connect(settings.records_url)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'of-tomorrow'")
    found = of(storage.check_database(settings), "database")
    assert found.severity is Severity.OK
    assert "a later release, and this release works with it" in found.text
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE schema_support SET oldest = 'of-tomorrow'")
    found = of(storage.check_database(settings), "database")
    assert found.severity is Severity.PROBLEM
    assert "a later release" in found.text
    engine.dispose()


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_schema_is_compared_without_changing_it(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = f"sqlite:///{tmp_path / 'registry.db'}"
    if kind == "postgresql":
        postgres: Postgres = request.getfixturevalue("postgres")
        url = postgres.new_database()
    engine = connect(url)
    assert schema_of(engine) is Schema.EMPTY
    assert schema_of(engine) is Schema.EMPTY
    upgrade(engine, "+1")
    assert schema_of(engine) is Schema.OLDER
    upgrade(engine)
    assert schema_of(engine) is Schema.CURRENT
    engine.dispose()


def test_a_database_that_does_not_answer(tmp_path: Path) -> None:
    url = "postgresql://loraplex:secret@127.0.0.1:1/loraplex"
    found = of(storage.check_database(Settings(data_dir=tmp_path, database_url=url)), "database")
    assert found.severity is Severity.PROBLEM
    assert "secret" not in found.text
    assert "LORAPLEX_DATABASE_URL" in found.remedy


def test_an_origin_that_answers(tmp_path: Path, s3: str) -> None:
    found = of(storage.check_origin(Settings(data_dir=tmp_path, origin=s3)), "origin")
    assert found.severity is Severity.OK


def test_an_origin_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
        "AWS_REGION": "none",
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
    }.items():
        monkeypatch.setenv(name, value)
    settings = Settings(data_dir=tmp_path, origin="s3://bucket/prefix")
    found = of(storage.check_origin(settings), "origin")
    assert found.severity is Severity.PROBLEM
    assert "AWS_" in found.remedy
    assert not list(storage.check_origin(Settings(data_dir=tmp_path)))


def test_files_that_settings_name(tmp_path: Path) -> None:
    settings = Settings(admin_key_file=tmp_path / "none", local_roots=(tmp_path, tmp_path / "no"))
    texts = [finding.text for finding in storage.check_files(settings)]
    assert texts == [
        f"LORAPLEX_ADMIN_KEY_FILE: {tmp_path}/none can't be read",
        f"LORAPLEX_LOCAL_ROOTS: {tmp_path}/no is no folder",
    ]
