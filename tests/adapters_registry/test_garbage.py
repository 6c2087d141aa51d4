"""What no version needs goes; what one needs, or the engine may read, stays."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from adapters_registry.check.base import BaseSpec
from adapters_registry.content.adapter_files import digest_of
from adapters_registry.content.store import ContentStore
from adapters_registry.errors import InsufficientStorage
from adapters_registry.garbage import collect_garbage
from adapters_registry.records.retirement import delete_adapter, retire_version
from adapters_registry.records.tables import VersionState
from adapters_registry.registry import Registry
from tests.adapters_registry.adapters import register, take_in
from tests.tiny import AdapterFactory


def test_each_state(registry: Registry, make_adapter: AdapterFactory) -> None:
    ready = register(registry, make_adapter(seed=1))
    pending, _ = take_in(registry, make_adapter(seed=2))
    retired = register(registry, make_adapter(seed=3))
    registry.apply(retire_version, "default", "home", retired.number)
    deleted = register(registry, make_adapter(seed=4), name="gone")
    registry.apply(delete_adapter, "default", "gone", force=True)
    expected = {v.digest: v.size_bytes for v in (retired, deleted)}
    assert registry.apply(collect_garbage, registry.content, dry_run=True) == expected
    assert len(registry.content.sizes()) == 4
    assert registry.apply(collect_garbage, registry.content) == expected
    assert set(registry.content.sizes()) == {ready.digest, pending.digest}
    assert not registry.content.path(retired.digest).exists()


def test_a_digest_that_another_version_needs(
    registry: Registry, make_adapter: AdapterFactory
) -> None:
    source = make_adapter()
    first = register(registry, source, name="one")
    register(registry, source, name="two")
    registry.apply(delete_adapter, "default", "one", force=True)
    assert registry.apply(collect_garbage, registry.content) == {}
    assert registry.content.path(first.digest).is_dir()


def test_what_a_crash_left_without_a_record(
    registry: Registry, make_adapter: AdapterFactory
) -> None:
    with registry.content.staging() as staged:
        for file in make_adapter().iterdir():
            (staged / file.name).write_bytes(file.read_bytes())
        digest, size_bytes = registry.content.seal(staged)
        registry.content.publish(staged, digest)
    assert registry.apply(collect_garbage, registry.content) == {digest: size_bytes}


def test_what_is_held_stays_until_it_is_released(
    registry: Registry, make_adapter: AdapterFactory
) -> None:
    version = register(registry, make_adapter())
    registry.content.hold(version.digest)
    registry.apply(retire_version, "default", "home", 1, force=True)
    assert registry.apply(collect_garbage, registry.content) == {}
    assert registry.content.path(version.digest).is_dir()
    registry.content.release(version.digest)
    assert list(registry.apply(collect_garbage, registry.content)) == [version.digest]


def test_rejected_content_goes_at_once_and_the_reasons_stay(
    registry: Registry, make_adapter: AdapterFactory
) -> None:
    version = register(registry, make_adapter(config={"use_dora": True}))
    assert version.state is VersionState.REJECTED
    assert registry.content.sizes() == {}
    assert registry.get_version("default", "home", 1).reasons


def test_rejected_content_that_another_version_needs(
    registry: Registry, make_adapter: AdapterFactory
) -> None:
    bad = make_adapter(config={"use_dora": True})
    pending, _ = take_in(registry, bad, name="other")
    register(registry, bad)
    assert list(registry.content.sizes()) == [pending.digest]


def test_a_registration_collects_garbage_before_it_is_refused(
    tmp_path: Path, tiny_base: BaseSpec, make_adapter: AdapterFactory, database_url: str
) -> None:
    sources = [make_adapter(seed=seed) for seed in range(4)]
    size = digest_of(sources[0])[1]
    content = ContentStore(tmp_path / "content", budget_bytes=2 * size + 100)
    registry = Registry(database_url, content, tiny_base)
    first, second = (register(registry, source) for source in sources[:2])
    with pytest.raises(InsufficientStorage, match="retire versions that are not needed"):
        take_in(registry, sources[2])
    registry.apply(retire_version, "default", "home", second.number)
    assert len(content.sizes()) == 2, "nobody needed the room yet"
    content.hold(second.digest)
    with pytest.raises(InsufficientStorage):
        take_in(registry, sources[2])
    content.release(second.digest)
    third = register(registry, sources[2])
    assert set(content.sizes()) == {first.digest, third.digest}
    assert [v.number for v in registry.get_adapter("default", "home").ready.values()] == [1, 3]
    assert not list((content.root / "staging").iterdir())
    registry.close()


def test_collections_while_the_same_content_comes_and_goes(
    registry: Registry, make_adapter: AdapterFactory
) -> None:
    """At the same moment: registered under three names, and collected. No version lacks its files,
    and no collection finds files without a version."""
    source, content = make_adapter(), registry.content
    for _ in range(10):
        with ThreadPoolExecutor(6) as pool:
            tasks, collections = [], []
            for number in range(3):
                tasks.append(pool.submit(take_in, registry, source, name=f"busy{number}"))
                collections.append(pool.submit(registry.apply, collect_garbage, content))
        assert all(collection.result() == {} for collection in collections)
        for task in tasks:
            version, is_new = task.result()
            assert is_new
            assert digest_of(content.path(version.digest))[0] == version.digest
            registry.accept(version, registry.check_files(version))
            registry.apply(delete_adapter, "default", version.name, force=True)
        assert list(registry.apply(collect_garbage, content)) == [version.digest]
