"""The origin, on a real S3 server: the folder is its cache, and replicas share it."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from adapters_registry.check.base import BaseSpec
from adapters_registry.content.adapter_files import WEIGHTS_FILE, digest_of
from adapters_registry.content.origin import Origin
from adapters_registry.content.s3 import Bucket
from adapters_registry.content.store import ContentStore
from adapters_registry.errors import ContentUnavailable, InsufficientStorage, StoreUnavailable
from adapters_registry.garbage import collect_garbage, collect_origin_garbage
from adapters_registry.records.retirement import retire_version
from adapters_registry.records.tables import VersionState, now
from adapters_registry.registry import Registry
from adapters_registry.verification import ContentState, needed_content, verify
from tests.adapters_registry.adapters import register, take_in
from tests.tiny import AdapterFactory

Replica = Callable[..., Registry]


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    return sqlite_url


@pytest.fixture
def replica(s3: str, tmp_path: Path, tiny_base: BaseSpec, database_url: str) -> Iterator[Replica]:
    """A registry with a folder of its own, on the common database and origin."""
    opened: list[Registry] = []

    def open_replica(budget_bytes: int | None = None) -> Registry:
        folder = tmp_path / f"replica{len(opened)}"
        content = ContentStore(folder, budget_bytes=budget_bytes, origin=Origin(s3))
        opened.append(Registry(database_url, content, tiny_base))
        return opened[-1]

    yield open_replica
    for registry in opened:
        registry.close()


def origin_of(registry: Registry) -> Origin:
    assert registry.content.origin
    return registry.content.origin


def unreachable(monkeypatch: pytest.MonkeyPatch, registry: Registry) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        registry.content.origin = Origin(origin_of(registry).url)


def test_a_version_is_at_the_origin_before_it_is_acknowledged(
    replica: Replica, make_adapter: AdapterFactory
) -> None:
    here, there = replica(), replica()
    version, _ = take_in(here, make_adapter())
    assert origin_of(here).sizes() == {version.digest: version.size_bytes}
    path = there.content.fetch(version.digest)
    assert path.is_relative_to(there.content.root)
    assert digest_of(path)[0] == version.digest


def test_what_stands_beside_the_weights_travels(
    replica: Replica, make_adapter: AdapterFactory
) -> None:
    here, there, source = replica(), replica(), make_adapter()
    plain, _ = take_in(here, source, name="plain")
    (source / "generation_config.json").write_text('{"temperature": 0.5}')
    version, _ = take_in(here, source)
    assert version.digest != plain.digest
    path = there.content.fetch(version.digest)
    assert (path / "generation_config.json").read_text() == '{"temperature": 0.5}'
    assert origin_of(here).size_of(version.digest) == version.size_bytes
    origin_of(here).remove([version.digest])
    assert origin_of(here).sizes() == {plain.digest: plain.size_bytes}


def test_no_version_without_the_origin(
    replica: Replica, make_adapter: AdapterFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, source = replica(), make_adapter()
    reachable = registry.content.origin
    unreachable(monkeypatch, registry)
    with pytest.raises(StoreUnavailable, match="cannot be reached"):
        take_in(registry, source)
    assert registry.catalog.adapters == {}
    assert registry.content.sizes() == {}
    assert not list((registry.content.root / "staging").iterdir())
    registry.content.origin = reachable
    assert register(registry, source).state is VersionState.READY


def test_one_fetch_for_many(
    replica: Replica, make_adapter: AdapterFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = register(replica(), make_adapter())
    content, fetches, get = replica().content, [], Origin.get

    def counted(self: Origin, digest: str, directory: Path) -> None:
        fetches.append(digest)
        get(self, digest, directory)

    monkeypatch.setattr(Origin, "get", counted)
    barrier = threading.Barrier(8)

    def fetch(_: int) -> Path:
        barrier.wait()
        return content.fetch(version.digest)

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(fetch, range(8))) == {content.path(version.digest)}
    assert fetches == [version.digest]


@pytest.mark.parametrize("harm", ["damaged", "missing"])
def test_what_is_lost_here_is_fetched(
    replica: Replica, make_adapter: AdapterFactory, harm: str
) -> None:
    registry = replica()
    version = register(registry, make_adapter())
    store = ContentStore(registry.content.root, origin=registry.content.origin)
    if harm == "damaged":
        (store.path(version.digest) / WEIGHTS_FILE).chmod(0o644)
        (store.path(version.digest) / WEIGHTS_FILE).write_text("bit rot")
    else:
        store.discard(version.digest)
    assert digest_of(store.fetch(version.digest))[0] == version.digest


def test_what_is_damaged_at_the_origin_is_not_served(
    replica: Replica, make_adapter: AdapterFactory, s3: str
) -> None:
    version = register(replica(), make_adapter())
    key = f"sha256/{version.digest}/{WEIGHTS_FILE}"
    Bucket(s3).upload(make_adapter(seed=9) / WEIGHTS_FILE, key)
    content = replica().content
    with pytest.raises(ContentUnavailable, match="is damaged in s3://"):
        content.fetch(version.digest)
    assert content.sizes() == {}
    assert not list((content.root / "staging").iterdir())
    Bucket(s3).delete([key])
    with pytest.raises(ContentUnavailable, match="does not have it: register the same files again"):
        content.fetch(version.digest)


def test_an_unreachable_origin_while_fetching(
    replica: Replica, make_adapter: AdapterFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = register(replica(), make_adapter())
    registry = replica()
    unreachable(monkeypatch, registry)
    with pytest.raises(StoreUnavailable, match="cannot be reached"):
        registry.content.fetch(version.digest)


def test_the_cache_stays_within_its_budget(
    replica: Replica, make_adapter: AdapterFactory, tmp_path: Path
) -> None:
    first, second, third = (register(replica(), make_adapter(seed=seed)) for seed in range(3))
    evictions: list[None] = []
    content = ContentStore(
        tmp_path / "cache",
        budget_bytes=2 * first.size_bytes + 100,
        origin=origin_of(replica()),
        on_evict=lambda: evictions.append(None),
    )
    content.fetch(first.digest)
    content.fetch(second.digest)
    content.fetch(first.digest)
    content.fetch(third.digest)
    assert set(content.sizes()) == {first.digest, third.digest}, "the least recently used went"
    assert len(evictions) == 1
    content.hold(first.digest)
    content.hold(third.digest)
    with pytest.raises(InsufficientStorage):
        content.fetch(second.digest)
    content.release(first.digest)
    content.release(third.digest)
    assert set(content.sizes()) == {first.digest, third.digest}
    content.fetch(second.digest)


def test_what_the_origin_does_not_have_is_not_evicted(
    replica: Replica, make_adapter: AdapterFactory, tmp_path: Path
) -> None:
    registry = replica()
    origin, registry.content.origin = registry.content.origin, None
    alone = register(registry, make_adapter(seed=1))
    registry.content.origin = origin
    findings = {f.digest: f.state for f in verify(registry.content, {alone.digest: []})}
    assert findings == {alone.digest: ContentState.NOT_AT_ORIGIN}
    small = ContentStore(registry.content.root, budget_bytes=alone.size_bytes + 100, origin=origin)
    registry.content = small
    with pytest.raises(InsufficientStorage):
        register(registry, make_adapter(seed=2))
    assert list(small.sizes()) == [alone.digest]


def test_collecting_at_the_origin(replica: Replica, make_adapter: AdapterFactory) -> None:
    here, there = replica(), replica()
    old = register(here, make_adapter(seed=1))
    new = register(here, make_adapter(seed=2), promote=True)
    there.content.fetch(old.digest)
    here.apply(retire_version, "default", "home", 1)
    origin = origin_of(here)
    for dry_run in (True, False):
        garbage = here.apply(collect_origin_garbage, origin, origin.sizes(), dry_run=dry_run)
        assert garbage == {old.digest: old.size_bytes}
    assert list(origin.sizes()) == [new.digest]
    assert there.content.path(old.digest).is_dir(), "a replica's folder is its own affair"
    assert list(there.apply(collect_garbage, there.content)) == [old.digest]


def test_a_collection_between_upload_and_record(
    replica: Replica, make_adapter: AdapterFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The content is at the origin already, as garbage, and another server collects just then."""
    here, there = replica(), replica()
    source = make_adapter()
    digest = register(here, source, name="old").digest
    here.apply(retire_version, "default", "old", 1, force=True)
    origin, put = origin_of(there), Origin.put
    assert digest in origin.sizes()

    def put_and_collect(self: Origin, digest: str, directory: Path) -> None:
        put(self, digest, directory)
        found = here.apply(collect_origin_garbage, origin, origin.sizes(), listed_at=now())
        assert found == {}, "the registration protects it"

    monkeypatch.setattr(Origin, "put", put_and_collect)
    version = register(there, source, name="new")
    assert version.digest == digest
    assert origin.size_of(digest) == version.size_bytes


def test_verification(replica: Replica, make_adapter: AdapterFactory) -> None:
    here, there = replica(), replica()
    version = register(here, make_adapter())
    states = []
    for registry in (here, there):
        with registry.session() as session:
            needed = needed_content(session)
        assert needed == {version.digest: ["default/home@1"]}
        states += [finding.state for finding in verify(registry.content, needed)]
    assert states == [ContentState.SOUND, ContentState.AT_ORIGIN]
    origin_of(here).remove([version.digest])
    assert [f.state for f in verify(there.content, needed)] == [ContentState.MISSING]


def test_registering_again_mends_damage_of_the_same_size(
    replica: Replica, make_adapter: AdapterFactory, tmp_path: Path
) -> None:
    here, there, source = replica(), replica(), make_adapter()
    version = register(here, source)
    damaged = tmp_path / "damaged"
    damaged.write_bytes(bytes((source / WEIGHTS_FILE).stat().st_size))
    bucket = Bucket(origin_of(here).url)
    bucket.upload(damaged, f"sha256/{version.digest}/{WEIGHTS_FILE}")
    with pytest.raises(ContentUnavailable):
        there.content.fetch(version.digest)
    take_in(here, source)
    assert digest_of(there.content.fetch(version.digest))[0] == version.digest
