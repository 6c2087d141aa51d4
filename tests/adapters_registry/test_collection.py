"""Collections while servers run: what nothing needs goes after a time, and nothing else does."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from adapters_registry.check.base import BaseSpec
from adapters_registry.collection import Collector
from adapters_registry.content.origin import Origin
from adapters_registry.content.store import ContentStore
from adapters_registry.errors import StoreUnavailable
from adapters_registry.garbage import MAX_REJECTED, uncollected_digests
from adapters_registry.records.idempotency import Idempotency
from adapters_registry.records.retirement import retire_version
from adapters_registry.records.tables import now
from adapters_registry.registry import Registry
from tests.adapters_registry.adapters import check, register, take_in
from tests.tiny import AdapterFactory

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


@pytest.fixture
def replica(
    tmp_path: Path, tiny_base: BaseSpec, database_url: str, s3: str
) -> Callable[[], Registry]:
    folders = iter(range(9))

    def open_replica() -> Registry:
        content = ContentStore(tmp_path / f"replica{next(folders)}", origin=Origin(s3))
        return Registry(database_url, content, tiny_base)

    return open_replica


def uncollected(registry: Registry) -> set[str]:
    with registry.session() as session:
        return uncollected_digests(session, "default")


def test_retired_files_go_after_the_time_of_grace(
    registry: Registry, make_adapter: AdapterFactory
) -> None:
    collector, start = Collector(registry, HOUR, 7 * DAY), now()
    old = register(registry, make_adapter(seed=1))
    new = register(registry, make_adapter(seed=2), promote=True)
    assert collector.collect(start).disk == {}
    registry.apply(retire_version, "default", "home", 1)
    assert collector.collect(start).disk == {}
    assert collector.collect(start + HOUR / 2).disk == {}
    assert uncollected(registry) == {old.digest}
    assert collector.collect(start + HOUR).disk == {old.digest: old.size_bytes}
    assert list(registry.content.sizes()) == [new.digest]
    assert uncollected(registry) == set()
    assert registry.get_version("default", "home", 1).digest == old.digest, "its record stays"


def test_the_time_of_grace_is_by_the_databases_clock(
    registry: Registry, make_adapter: AdapterFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server whose own clock jumps ahead collects nothing too soon, for all at the origin."""
    collector, said = Collector(registry, HOUR, 7 * DAY), now() + 30 * DAY
    monkeypatch.setattr("adapters_registry.collection.database_time", lambda _session: said)
    old = register(registry, make_adapter(seed=1))
    register(registry, make_adapter(seed=2), promote=True)
    registry.apply(retire_version, "default", "home", 1)
    assert collector.collect().disk == {}
    said -= HOUR / 2
    assert collector.collect().disk == {}
    said += 1.5 * HOUR
    assert list(collector.collect().disk) == [old.digest]


def test_without_grace_and_without_removing(
    registry: Registry, make_adapter: AdapterFactory
) -> None:
    collector = Collector(registry, HOUR, 7 * DAY)
    old = register(registry, make_adapter(seed=1))
    registry.apply(retire_version, "default", "home", 1, force=True)
    expected = {old.digest: old.size_bytes}
    assert collector.collect(now(), grace=timedelta(0), dry_run=True).disk == expected
    assert registry.content.sizes() == expected
    assert collector.collect(now(), grace=timedelta(0)).disk == expected
    assert registry.content.sizes() == {}


def test_what_is_needed_again_is_kept(registry: Registry, make_adapter: AdapterFactory) -> None:
    collector, source, start = Collector(registry, HOUR, 7 * DAY), make_adapter(), now()
    register(registry, source)
    registry.apply(retire_version, "default", "home", 1, force=True)
    collector.collect(start)
    version = register(registry, source)
    assert collector.collect(start + HOUR).disk == {}
    registry.apply(retire_version, "default", "home", 2, force=True)
    assert collector.collect(start + 1.5 * HOUR).disk == {}, "the time begins anew"
    assert list(collector.collect(start + 2.5 * HOUR).disk) == [version.digest]


def test_a_registry_without_versions_collects_nothing(
    registry: Registry, make_adapter: AdapterFactory
) -> None:
    with registry.content.staging() as staged:
        for file in make_adapter().iterdir():
            (staged / file.name).write_bytes(file.read_bytes())
        digest, _ = registry.content.seal(staged)
        registry.content.publish(staged, digest)
    collector = Collector(registry, timedelta(0), 7 * DAY)
    assert collector.collect(now()).disk == {}, "it may be the wrong database"
    take_in(registry, make_adapter(seed=2))
    assert list(collector.collect(now()).disk) == [digest]


def test_at_the_origin_for_all_replicas(
    replica: Callable[[], Registry], make_adapter: AdapterFactory
) -> None:
    here, there, start = replica(), replica(), now()
    old = register(here, make_adapter(seed=1))
    new = register(here, make_adapter(seed=2), promote=True)
    there.content.fetch(old.digest)
    here.apply(retire_version, "default", "home", 1)
    collectors = [Collector(registry, HOUR, 7 * DAY) for registry in (here, there)]
    for collector in collectors:
        assert collector.collect(start).origin == {}
    assert collectors[0].collect(start + HOUR).origin == {old.digest: old.size_bytes}
    assert uncollected(here) == set()
    assert collectors[1].collect(start + HOUR).origin == {}
    for registry in (here, there):
        assert registry.content.origin
        assert old.digest not in registry.content.sizes()
        assert list(registry.content.origin.sizes()) == [new.digest]
        registry.close()


def test_an_origin_that_is_away_is_collected_later(
    replica: Callable[[], Registry], make_adapter: AdapterFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = replica()
    collector = Collector(registry, timedelta(0), 7 * DAY)
    bad = make_adapter(config={"use_dora": True})
    version, _ = take_in(registry, bad)

    def away(*_: object) -> None:
        raise StoreUnavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(Origin, "size_of", away)
        patch.setattr(Origin, "sizes", away)
        check(registry, version)
        assert collector.collect(now()).origin == {}
    assert registry.content.sizes() == {}
    assert uncollected(registry) == {version.digest}, "it still counts for the quota"
    assert list(collector.collect(now()).origin) == [version.digest]
    assert uncollected(registry) == set()
    registry.close()


def test_rejected_versions_are_forgotten_after_some_days(
    registry: Registry, make_adapter: AdapterFactory
) -> None:
    bad, good = make_adapter(config={"use_dora": True}), make_adapter()
    take_in(registry, bad, idempotency=Idempotency("caller", "key"))
    check(registry, registry.get_version("default", "home", 1))
    register(registry, good)
    collector = Collector(registry, HOUR, 7 * DAY)
    assert collector.collect(now()).rejected_versions == 0
    assert collector.collect(now() + 8 * DAY).rejected_versions == 1
    assert list(registry.get_adapter("default", "home").versions) == [2]
    assert register(registry, bad).number == 3, "its number is not used again"


def test_an_adapter_keeps_few_rejected_versions(
    registry: Registry, make_adapter: AdapterFactory
) -> None:
    bad = make_adapter(config={"use_dora": True})
    for _ in range(MAX_REJECTED + 2):
        register(registry, bad)
    collector = Collector(registry, HOUR, 7 * DAY)
    assert collector.collect(now()).rejected_versions == 2
    kept = sorted(version.number for version in registry.read_history("default", "home"))
    assert kept == list(range(3, MAX_REJECTED + 3)), "the newest"
