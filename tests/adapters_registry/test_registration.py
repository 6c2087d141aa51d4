"""What is refused is refused early, and leaves nothing behind: on disk, at the origin, reserved."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
from sqlalchemy import func, select, update

from adapters_registry.check.base import BaseSpec
from adapters_registry.content.adapter_files import digest_of
from adapters_registry.content.origin import Origin
from adapters_registry.content.store import ContentStore
from adapters_registry.errors import KeyReused, QuotaExceeded
from adapters_registry.recording import Registration
from adapters_registry.records.idempotency import Idempotency
from adapters_registry.records.retirement import retire_version
from adapters_registry.records.tables import Reservation, now
from adapters_registry.records.tenants import Quota, set_quota
from adapters_registry.registry import Registry
from tests.adapters_registry.adapters import register, take_in
from tests.tiny import AdapterFactory


def limit(registry: Registry, **quota: Any) -> None:
    registry.apply(set_quota, "default", Quota(**quota))


def assert_nothing_left(registry: Registry) -> None:
    assert registry.content.sizes() == {}
    assert not [file for file in registry.content.root.rglob("*") if file.is_file()]
    assert num_reservations(registry) == 0
    if registry.content.origin:
        assert registry.content.origin.sizes() == {}


def num_reservations(registry: Registry) -> int:
    with registry.session() as session:
        return session.scalar(select(func.count()).select_from(Reservation)) or 0


def test_over_the_announced_size_not_a_file_is_staged(
    registry: Registry, make_adapter: AdapterFactory
) -> None:
    limit(registry, adapter_bytes=150)
    staged: list[Path] = []
    for _ in range(3):
        with pytest.raises(QuotaExceeded):
            registry.register("default", "home", "test", staged.append, size_bytes=151)
    assert not staged
    assert_nothing_left(registry)


def test_over_the_number_of_adapters_not_a_file_is_staged(
    registry: Registry, make_adapter: AdapterFactory
) -> None:
    limit(registry, adapters=1)
    register(registry, make_adapter())
    staged: list[Path] = []
    with pytest.raises(QuotaExceeded, match="may have 1 adapters"):
        registry.register("default", "other", "test", staged.append)
    assert not staged
    register(registry, make_adapter(seed=2))


def test_a_size_that_nobody_announced_leaves_nothing_either(
    registry: Registry, make_adapter: AdapterFactory
) -> None:
    limit(registry, adapter_bytes=150)
    for seed in range(3):
        with pytest.raises(QuotaExceeded, match="may have 150 bytes"):
            take_in(registry, make_adapter(seed=seed))
    assert registry.catalog.adapters == {}
    assert_nothing_left(registry)


@pytest.fixture
def at_origin(
    tmp_path: Path, tiny_base: BaseSpec, database_url: str, s3: str
) -> Callable[[str], Registry]:
    def open_registry(folder: str) -> Registry:
        content = ContentStore(tmp_path / folder, origin=Origin(s3))
        return Registry(database_url, content, tiny_base)

    return open_registry


def test_nothing_is_left_at_the_origin(
    at_origin: Callable[[str], Registry], make_adapter: AdapterFactory
) -> None:
    registry = at_origin("content")
    limit(registry, adapter_bytes=150)
    for seed in range(2):
        with pytest.raises(QuotaExceeded):
            take_in(registry, make_adapter(seed=seed))
    assert_nothing_left(registry)
    limit(registry, adapter_bytes=1 << 20)
    rejected = register(registry, make_adapter(config={"use_dora": True}))
    assert rejected.reasons
    assert_nothing_left(registry)
    kept = register(registry, make_adapter())
    registry.apply(set_quota, "default", Quota(adapter_bytes=kept.size_bytes))
    with pytest.raises(QuotaExceeded):
        take_in(registry, make_adapter(seed=7), name="other")
    assert registry.content.origin
    assert registry.content.origin.sizes() == registry.content.sizes()
    assert list(registry.content.sizes()) == [kept.digest]
    registry.close()


def test_a_refused_registration_spares_what_another_version_needs(
    at_origin: Callable[[str], Registry], make_adapter: AdapterFactory
) -> None:
    registry, source = at_origin("content"), make_adapter()
    version = register(registry, source)
    limit(registry, adapter_bytes=version.size_bytes)
    with pytest.raises(QuotaExceeded):
        take_in(registry, source, name="other")
    assert registry.content.origin
    assert registry.content.origin.size_of(version.digest) == version.size_bytes
    assert digest_of(registry.content.fetch(version.digest))[0] == version.digest
    registry.close()


def test_a_key_that_came_before_leaves_nothing(
    registry: Registry, make_adapter: AdapterFactory
) -> None:
    idempotency = Idempotency("caller", "key")
    version, _ = take_in(registry, make_adapter(), idempotency=idempotency)
    limit(registry, adapter_bytes=version.size_bytes)
    again, is_new = take_in(registry, make_adapter(), idempotency=idempotency)
    assert (again, is_new) == (version, False), "a repetition is no second version to have room for"
    with pytest.raises(KeyReused):
        take_in(registry, make_adapter(seed=2), idempotency=idempotency)
    assert list(registry.content.sizes()) == [version.digest]


def test_registrations_at_a_time_cannot_take_more_than_the_quota_together(
    registry: Registry, make_adapter: AdapterFactory
) -> None:
    sources = [make_adapter(seed=seed) for seed in range(6)]
    size = digest_of(sources[0])[1]
    limit(registry, adapter_bytes=2 * size + 50)
    num_staged: list[Path] = []

    def try_to_register(number: int) -> bool:
        def stage(directory: Path) -> None:
            num_staged.append(directory)
            copytree(sources[number], directory, dirs_exist_ok=True)

        try:
            registry.register("default", f"n{number}", "test", stage, size_bytes=size)
        except QuotaExceeded:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        taken = sum(pool.map(try_to_register, range(6)))
    assert taken == len(num_staged) == 2, "what is reserved was not staged by others"
    assert len(registry.content.sizes()) == 2
    assert num_reservations(registry) == 0


def test_files_of_retired_versions_count_until_they_are_removed(
    registry: Registry, make_adapter: AdapterFactory
) -> None:
    first = register(registry, make_adapter(seed=1))
    limit(registry, adapter_bytes=first.size_bytes + 50)
    registry.apply(retire_version, "default", "home", 1, force=True)
    registry.content.hold(first.digest)
    with pytest.raises(QuotaExceeded):
        take_in(registry, make_adapter(seed=2))
    registry.content.release(first.digest)
    second, _ = take_in(registry, make_adapter(seed=2))
    assert list(registry.content.sizes()) == [second.digest], "room was made for it"


def test_a_reservation_ends_with_its_server_or_its_time(
    tmp_path: Path, tiny_base: BaseSpec, database_url: str, registry: Registry
) -> None:
    limit(registry, adapters=1)
    other = Registry(database_url, ContentStore(tmp_path / "other"), tiny_base)
    with registry.intake() as intake:
        intake.admit("default", "home")
        with other.intake() as late, pytest.raises(QuotaExceeded):
            late.admit("default", "late")
        again = ContentStore(tmp_path / "content")
        Registry(database_url, again, tiny_base, server_id=registry.server_id).close()
        with other.intake() as late:
            late.admit("default", "late")
            past = now() - timedelta(seconds=1)
            with registry.change() as change:
                change.session.execute(update(Reservation).values(expires_at=past))
            intake.admit("default", "home")
    assert num_reservations(registry) == 0
    other.close()


def test_a_registration_that_took_too_long_is_checked_at_its_end(
    registry: Registry, make_adapter: AdapterFactory
) -> None:
    source = make_adapter()
    limit(registry, adapters=1)
    with registry.intake() as intake:
        intake.admit("default", "slow")
        with registry.change() as change:
            past = now() - timedelta(seconds=1)
            change.session.execute(update(Reservation).values(expires_at=past))
        stage = partial(copytree, source, dirs_exist_ok=True)
        registry.register("default", "quick", "test", stage)
        stage(intake.directory)
        with pytest.raises(QuotaExceeded):
            intake.commit(Registration("default", "slow", "test", False, {}))
    assert [name for _, name in registry.catalog.adapters] == ["quick"]
