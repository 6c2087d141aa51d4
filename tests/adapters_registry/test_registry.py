from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from adapters_registry.check.base import BaseSpec
from adapters_registry.content.adapter_files import digest_of
from adapters_registry.content.store import ContentStore
from adapters_registry.errors import InvalidName, NotFound
from adapters_registry.records.tables import VersionState, now
from adapters_registry.registry import Registry
from tests.adapters_registry.adapters import check, register, take_in
from tests.tiny import AdapterFactory


def test_first_version_becomes_live(registry: Registry, make_adapter: AdapterFactory) -> None:
    source = make_adapter()
    version = register(registry, source)
    assert (version.number, version.state) == (1, VersionState.READY)
    assert version.digest == digest_of(source)[0]
    assert version.public_name == "default/home@1"
    assert registry.get_adapter("default", "home").live == version


def test_live_moves_by_promotion_only(registry: Registry, make_adapter: AdapterFactory) -> None:
    first = register(registry, make_adapter(seed=1))
    second = register(registry, make_adapter(seed=2))
    assert registry.get_adapter("default", "home").live == first
    third = register(registry, make_adapter(seed=3), promote=True)
    assert registry.get_adapter("default", "home").live == third
    assert [first.number, second.number, third.number] == [1, 2, 3]
    assert len({first.version_id, second.version_id, third.version_id}) == 3


def test_same_content_is_not_doubled(registry: Registry, make_adapter: AdapterFactory) -> None:
    source = make_adapter()
    first = register(registry, source)
    again, is_new = take_in(registry, source)
    assert (again, is_new) == (first, False)
    register(registry, make_adapter(seed=2), promote=True)
    take_in(registry, source, promote=True)
    assert registry.get_adapter("default", "home").live == first


def test_rejected_is_kept_with_reasons_and_never_live(
    registry: Registry, make_adapter: AdapterFactory
) -> None:
    bad = make_adapter(config={"use_dora": True})
    version = register(registry, bad, promote=True)
    assert version.state is VersionState.REJECTED
    assert version.reasons[0]["code"] == "unsupported_feature"
    assert registry.get_adapter("default", "home").live is None
    second = register(registry, bad)
    assert second.number == 2, "a rejected version may be tried again, as a new one"


def test_state_and_ids_survive_reopening(
    tmp_path: Path, tiny_base: BaseSpec, make_adapter: AdapterFactory, database_url: str
) -> None:
    url, content = database_url, ContentStore(tmp_path / "c")
    registry = Registry(url, content, tiny_base)
    version = register(registry, make_adapter())
    registry.close()
    reopened = Registry(url, content, tiny_base)
    assert reopened.get_adapter("default", "home").live == version
    other = register(reopened, make_adapter(seed=5), name="other")
    assert other.version_id > version.version_id
    reopened.close()


def test_an_interrupted_check_is_known_at_the_next_start(
    tmp_path: Path, tiny_base: BaseSpec, make_adapter: AdapterFactory, database_url: str
) -> None:
    url, content = database_url, ContentStore(tmp_path / "c")
    registry = Registry(url, content, tiny_base)
    version, _ = take_in(registry, make_adapter())
    assert version.state is VersionState.PENDING
    registry.close()
    reopened = Registry(url, content, tiny_base)
    assert reopened.unfinished() == [version]
    reopened.close()


def test_promotion_asked_for_while_the_check_runs_is_kept(
    registry: Registry, make_adapter: AdapterFactory
) -> None:
    register(registry, make_adapter(seed=1))
    source = make_adapter(seed=2)
    second, _ = take_in(registry, source)
    take_in(registry, source, promote=True)
    check(registry, second)
    live = registry.get_adapter("default", "home").live
    assert live is not None
    assert live.number == 2


def test_a_check_that_fails_rejects_and_does_not_keep_the_server_from_starting(
    registry: Registry, make_adapter: AdapterFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stumble(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("adapters_registry.check.stored.check_adapter", stumble)
    version = register(registry, make_adapter())
    assert version.state is VersionState.REJECTED
    assert version.reasons[0]["code"] == "check_failed"


def test_moments_keep_their_zone(registry: Registry, make_adapter: AdapterFactory) -> None:
    version = register(registry, make_adapter())
    assert version.created_at.utcoffset() == timedelta(0)
    assert registry.get_version("default", "home", 1).created_at == version.created_at
    assert abs(now() - version.created_at) < timedelta(minutes=1)


def test_two_threads_register_the_same_name(
    registry: Registry, make_adapter: AdapterFactory
) -> None:
    sources = [make_adapter(seed=seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        versions = list(pool.map(lambda source: register(registry, source), sources))
    assert sorted(version.number for version in versions) == list(range(1, 9))
    assert len(registry.get_adapter("default", "home").ready) == 8


def test_unknown_names(registry: Registry, make_adapter: AdapterFactory) -> None:
    with pytest.raises(InvalidName):
        take_in(registry, make_adapter(), name="../home")
    with pytest.raises(NotFound, match="no tenant"):
        registry.register("nobody", "home", "", lambda _: None)
    with pytest.raises(NotFound, match="no adapter"):
        registry.get_adapter("default", "home")
    register(registry, make_adapter())
    with pytest.raises(NotFound, match="no version 9"):
        registry.get_version("default", "home", 9)
