"""Which of several servers decides on a version, and what its verdict may change."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import update

from adapters_registry import verdicts
from adapters_registry.check.base import BaseSpec
from adapters_registry.content.store import ContentStore
from adapters_registry.errors import CheckedElsewhere, ContentUnavailable, Reason
from adapters_registry.records.aliases import point_alias, roll_back
from adapters_registry.records.catalog import Target, VersionRecord
from adapters_registry.records.retirement import retire_version
from adapters_registry.records.tables import Version, VersionState, now
from adapters_registry.registry import Registry
from tests.adapters_registry.adapters import check, register, take_in
from tests.tiny import AdapterFactory


@pytest.fixture
def other(tmp_path: Path, tiny_base: BaseSpec, database_url: str) -> Iterator[Registry]:
    """Another server on the same database, with the same folder of files."""
    registry = Registry(database_url, ContentStore(tmp_path / "content"), tiny_base)
    yield registry
    registry.close()


def state_of(registry: Registry, version: VersionRecord) -> VersionState:
    found = registry.read_version(version.version_id)
    assert found is not None
    return found.state


def live_of(registry: Registry) -> int | None:
    registry.refresh()
    live = registry.get_adapter("default", "home").live
    return live.number if live else None


def end_lease(registry: Registry, version: VersionRecord) -> None:
    """The lease on a check runs out, as after a crash of its server."""
    with registry.session() as session:
        ended = update(Version).where(Version.id == version.version_id)
        session.execute(ended.values(checked_until=now() - 2 * verdicts.LEASE))


def test_a_check_belongs_to_the_server_that_began_it(
    registry: Registry, other: Registry, make_adapter: AdapterFactory
) -> None:
    version, _ = take_in(registry, make_adapter())
    facts = registry.check_files(version)
    assert other.unfinished() == []
    for decide in (
        lambda: other.check_files(version),
        lambda: other.accept(version, facts),
        lambda: other.reject(version, [Reason("x", "x")]),
    ):
        with pytest.raises(CheckedElsewhere):
            decide()
    other.release_check(version)
    assert state_of(other, version) is VersionState.CHECKING
    assert registry.accept(version, facts).state is VersionState.READY


def test_a_ready_version_is_never_taken_back(
    registry: Registry, other: Registry, make_adapter: AdapterFactory
) -> None:
    version = register(registry, make_adapter())
    with pytest.raises(CheckedElsewhere):
        other.check_files(version)
    with pytest.raises(CheckedElsewhere):
        registry.reject(version, [Reason("late", "late")])
    assert live_of(registry) == live_of(other) == 1


def test_another_server_takes_over_when_the_lease_has_run_out(
    registry: Registry, other: Registry, make_adapter: AdapterFactory
) -> None:
    version, _ = take_in(registry, make_adapter())
    facts = registry.check_files(version)
    end_lease(registry, version)
    assert registry.renew_check(version), "nobody else has it yet"
    assert other.unfinished() == []
    end_lease(registry, version)
    assert [v.version_id for v in other.unfinished()] == [version.version_id]
    other.check_files(version)
    assert not registry.renew_check(version)
    with pytest.raises(CheckedElsewhere):
        registry.accept(version, facts)
    assert other.accept(version, facts).state is VersionState.READY


def test_a_server_that_comes_back_goes_on_with_its_checks(
    registry: Registry, tmp_path: Path, tiny_base: BaseSpec, make_adapter: AdapterFactory
) -> None:
    version, _ = take_in(registry, make_adapter())
    registry.check_files(version)
    content, url = ContentStore(tmp_path / "content"), registry.engine.url
    again = Registry(str(url), content, tiny_base, server_id=registry.server_id)
    assert check(again, again.unfinished()[0]).state is VersionState.READY
    again.close()


def test_a_late_verdict_does_not_undo_a_rollback(
    registry: Registry, other: Registry, make_adapter: AdapterFactory
) -> None:
    for seed in (1, 2):
        register(registry, make_adapter(seed=seed), promote=True)
    version, _ = take_in(registry, make_adapter(seed=3), promote=True)
    facts = registry.check_files(version)
    other.refresh()
    other.apply(roll_back, "default", "home")
    assert registry.accept(version, facts).state is VersionState.READY
    assert live_of(registry) == 1


def test_promotions_in_the_order_of_registration(
    registry: Registry, make_adapter: AdapterFactory
) -> None:
    register(registry, make_adapter())
    second, third, fourth = (
        take_in(registry, make_adapter(seed=seed), promote=True)[0] for seed in (2, 3, 4)
    )
    check(registry, second)
    assert live_of(registry) == 2
    check(registry, fourth)
    assert live_of(registry) == 4, "the promotion of an earlier version does not cancel it"
    check(registry, third)
    assert live_of(registry) == 4, "a later version was promoted meanwhile"


def test_a_first_version_stays_out_of_service_if_live_was_removed_meanwhile(
    registry: Registry, make_adapter: AdapterFactory
) -> None:
    register(registry, make_adapter(seed=1))
    version, _ = take_in(registry, make_adapter(seed=2), promote=True)
    registry.apply(retire_version, "default", "home", 1, force=True)
    check(registry, version)
    assert live_of(registry) is None
    registry.apply(point_alias, "default", "home", "live", [Target(2, 100)])
    assert live_of(registry) == 2


def test_files_that_cannot_be_had_are_no_verdict(
    registry: Registry, make_adapter: AdapterFactory
) -> None:
    source = make_adapter()
    version, _ = take_in(registry, source)
    shutil.rmtree(registry.content.path(version.digest))
    with pytest.raises(ContentUnavailable):
        registry.check_files(version)
    registry.release_check(version)
    assert state_of(registry, version) is VersionState.PENDING
    take_in(registry, source)
    assert check(registry, version).state is VersionState.READY


@pytest.mark.parametrize("fault", [OSError(5, "EIO"), OSError(24, "EMFILE"), MemoryError()])
def test_faults_of_the_machine_are_no_verdict(
    registry: Registry,
    make_adapter: AdapterFactory,
    monkeypatch: pytest.MonkeyPatch,
    fault: Exception,
) -> None:
    def fail(*_: object) -> None:
        raise fault

    version, _ = take_in(registry, make_adapter())
    with monkeypatch.context() as patch:
        patch.setattr("adapters_registry.check.static_check.read_header", fail)
        with pytest.raises(type(fault)):
            registry.check_files(version)
    assert check(registry, version).state is VersionState.READY


def test_a_server_inherits_the_checks_of_its_earlier_life(
    registry: Registry, make_adapter: AdapterFactory, tmp_path: Path, tiny_base: BaseSpec
) -> None:
    """Also if that one lives, as the data folder is a copy: then it has lost them."""
    version, _ = take_in(registry, make_adapter())
    facts = registry.check_files(version)
    url, content = str(registry.engine.url), ContentStore(tmp_path / "copy")
    copy = Registry(url, content, tiny_base, former_id=registry.server_id)
    assert copy.server_id != registry.server_id
    with pytest.raises(CheckedElsewhere):
        registry.accept(version, facts)
    assert [each.version_id for each in copy.unfinished()] == [version.version_id]
    assert copy.accept(version, facts).state is VersionState.READY
    copy.close()
