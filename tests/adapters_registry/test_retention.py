"""Old usage is added up by the day; old records are exported and removed when asked."""

import json
import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import func, select
from typer.testing import CliRunner

from adapters_registry.records.database import open_database
from adapters_registry.records.network_storage import network_file_system
from adapters_registry.records.tables import AuditEntry
from adapters_registry.records.usage.consumption import Consumption
from adapters_registry.records.usage.reading import read_usage
from adapters_registry.records.usage.recording import add_usage
from adapters_registry.records.usage.tables import Usage
from adapters_registry.registry import Registry
from adapters_registry.retention import export, prune
from server.cli.main import app
from server.process.upkeep import roll_up_usage

NOW = datetime(2026, 11, 28, 9, 30, tzinfo=UTC)
DAY, HOUR = timedelta(days=1), timedelta(hours=1)


def use(registry: Registry, at: datetime, tenant: str = "acme", requests: int = 1) -> None:
    with registry.session() as session:
        add_usage(
            session, {(at, f"id of {tenant}", tenant, "base"): Consumption(requests, 2, 3, 0.5, 1)}
        )


def num_rows(registry: Registry) -> int:
    with registry.session() as session:
        return session.scalar(select(func.count()).select_from(Usage)) or 0


def test_hours_become_days_after_ninety(registry: Registry) -> None:
    midnight = NOW.replace(hour=0, minute=0)
    old, young = midnight - 100 * DAY, midnight - 90 * DAY
    for hour in range(24):
        use(registry, old + hour * HOUR)
        use(registry, old + hour * HOUR, "other", 2)
        use(registry, young + hour * HOUR)
    with registry.session() as session:
        before = read_usage(session, until=NOW)
    for _ in range(2):  # the second time there is nothing left to do
        roll_up_usage(registry, NOW)
        assert num_rows(registry) == 2 + 24
    with registry.session() as session:
        assert read_usage(session, until=NOW) == before
        of_day = read_usage(session, since=old, until=old + DAY)
    expected = [Consumption(24 * n, 48, 72, 12.0, 24) for n in (1, 2)]
    assert [used for *_, used in of_day] == expected


def test_export_and_prune(registry: Registry) -> None:
    use(registry, NOW - 400 * DAY)
    use(registry, NOW)
    with registry.change() as change:
        for days in (399, 0):
            entry = AuditEntry(at=NOW - days * DAY, actor="a", origin="", tenant="acme")
            entry.action, entry.subject, entry.after = "test", f"{days}", {"x": 1}
            change.session.add(entry)
    cut = NOW - 300 * DAY
    with registry.session() as session:
        rows = json.loads(json.dumps(list(export(session, cut))))
    assert [(row["table"], row.get("subject")) for row in rows] == [
        ("audit", "399"),
        ("usage", None),
    ]
    assert rows[0]["after"] == {"x": 1}
    assert prune(registry.session, cut) == (1, 1)
    assert num_rows(registry) == 1
    entries = registry.audit()
    assert [entry.subject for entry in entries if entry.action == "test"] == ["0"]
    (said,) = [entry for entry in entries if entry.action == "registry.prune"]
    assert said.after == {"before": cut.isoformat(), "audit": 1, "usage": 1}
    assert prune(registry.session, cut) == (0, 0)


def test_the_command(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAPLEX_DATABASE_URL", registry.engine.url.render_as_string(False))
    monkeypatch.setenv("LORAPLEX_DATA_DIR", str(tmp_path))
    use(registry, NOW - 400 * DAY)
    file = tmp_path / "old.jsonl"
    command = ["registry", "prune", "--before", "2026-01-01", "--export", str(file), "--json"]
    result = CliRunner().invoke(app, command)
    assert json.loads(result.stdout) == {"audit": 0, "usage": 1}
    assert [json.loads(line)["table"] for line in file.read_text().splitlines()] == ["usage"]
    use(registry, NOW - 400 * DAY)
    assert CliRunner().invoke(app, command).exit_code != 0, "an export is not overwritten"
    assert num_rows(registry) == 1, "and nothing is removed without it"


MOUNTS = r"""22 1 8:1 / / rw - ext4 /dev/sda1 rw
30 22 0:40 / /data rw shared:1 - nfs4 server:/export rw
31 30 8:2 / /data/local\040disk rw - xfs /dev/sdb1 rw
32 22 0:41 / /bucket rw - fuse.mountpoint-s3 s3 rw
33 22 0:42 / /over rw - nfs4 server:/x rw
34 22 8:3 / /over rw - ext4 /dev/sdc1 rw
"""


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("/var/registry.db", None),
        ("/database/registry.db", None),
        ("/data/registry.db", "nfs4"),
        ("/data/local disk/registry.db", None),
        ("/bucket/var/registry.db", "fuse.mountpoint-s3"),
        ("/over/registry.db", None),
    ],
)
def test_network_storage_is_known(tmp_path: Path, file: str, kind: str | None) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)
    assert network_file_system(Path(file), mounts) == kind


def test_without_a_table_of_mounts(tmp_path: Path) -> None:
    assert network_file_system(tmp_path, tmp_path / "missing") is None


@pytest.mark.parametrize(("kind", "mode"), [("nfs4", "delete"), (None, "wal")])
def test_the_journal_suits_the_storage(
    tmp_path: Path,
    kind: str | None,
    mode: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    name = "adapters_registry.records.database.network_file_system"
    monkeypatch.setattr(name, lambda _: kind)
    with caplog.at_level(logging.WARNING):
        engine = open_database(f"sqlite:///{tmp_path / 'registry.db'}")
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == mode
    said = [record for record in caplog.records if "network storage (nfs4)" in record.message]
    assert len(said) == (1 if kind else 0)
    engine.dispose()
