"""Promotion, splits, the way back, retirement; on SQLite and PostgreSQL."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest

from adapters_registry.content.store import ContentStore
from adapters_registry.errors import (
    ChangedMeanwhile,
    Conflict,
    InvalidName,
    InvalidTargets,
    KeyReused,
    NotFound,
)
from adapters_registry.records.aliases import point_alias, remove_alias, roll_back
from adapters_registry.records.catalog import AliasRecord, Target, pick
from adapters_registry.records.idempotency import Idempotency
from adapters_registry.records.retirement import delete_adapter, retire_version
from adapters_registry.records.tables import VersionState
from adapters_registry.registry import Registry
from tests.adapters_registry.adapters import register, take_in
from tests.tiny import AdapterFactory


@pytest.fixture
def home(registry: Registry, make_adapter: AdapterFactory) -> Registry:
    """A registry whose adapter `home` has three ready versions; the first is live."""
    for seed in (1, 2, 3):
        register(registry, make_adapter(seed=seed))
    return registry


def point(registry: Registry, *targets: tuple[int, int], alias: str = "live", **more: Any) -> None:
    pairs = [Target(*target) for target in targets]
    registry.apply(point_alias, "default", "home", alias, pairs, **more)


def targets(registry: Registry, alias: str = "live") -> list[Target]:
    record = registry.get_adapter("default", "home").aliases[alias]
    return list(record.targets)


def test_promotion_and_the_way_back(home: Registry) -> None:
    point(home, (2, 100))
    point(home, (3, 100))
    assert targets(home) == [(3, 100)]
    home.apply(roll_back, "default", "home")
    assert targets(home) == [(2, 100)]
    home.apply(roll_back, "default", "home")
    assert targets(home) == [(3, 100)], "going back can be taken back"


def test_a_canarys_steps_count_as_one(home: Registry) -> None:
    for weight in (10, 50):
        point(home, (2, weight), (1, 100 - weight))
    live = home.get_adapter("default", "home").live
    assert live is not None
    point(home, (2, 100))
    home.apply(roll_back, "default", "home")
    assert targets(home) == [(1, 100)]


def test_a_canary_is_called_off(home: Registry) -> None:
    point(home, (2, 10), (1, 90))
    home.apply(roll_back, "default", "home")
    assert targets(home) == [(1, 100)]
    with pytest.raises(Conflict, match="nothing to go back to"):
        home.apply(roll_back, "default", "home")


def test_nothing_to_go_back_to(home: Registry) -> None:
    with pytest.raises(Conflict, match="nothing to go back to"):
        home.apply(roll_back, "default", "home")
    point(home, (2, 100))
    home.apply(retire_version, "default", "home", 1)
    with pytest.raises(Conflict, match="version 1 is retired"):
        home.apply(roll_back, "default", "home")
    with pytest.raises(NotFound, match="no alias 'canary'"):
        home.apply(roll_back, "default", "home", "canary")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([], "1 to 8 targets"),
        ([(1, 50), (1, 50)], "each version once"),
        ([(1, 50), (2, 49)], "their sum is 100"),
        ([(1, 100), (2, 0)], "from 1"),
        ([(1, 110), (2, -10)], "from 1"),
        ([(9, 100)], "version 9 is unknown"),
        ([(4, 100)], "version 4 is rejected"),
    ],
)
def test_targets_that_cannot_be(
    home: Registry, make_adapter: AdapterFactory, wrong: list[tuple[int, int]], message: str
) -> None:
    register(home, make_adapter(config={"use_dora": True}))
    with pytest.raises(InvalidTargets, match=message):
        point(home, *wrong)
    assert targets(home) == [(1, 100)]


def test_a_change_meanwhile_is_noticed(home: Registry) -> None:
    point(home, (2, 100), if_revision=1)
    with pytest.raises(ChangedMeanwhile):
        point(home, (3, 100), if_revision=1)
    assert targets(home) == [(2, 100)]
    point(home, (3, 100), alias="next", if_revision=0)
    with pytest.raises(ChangedMeanwhile):
        point(home, (2, 100), alias="next", if_revision=0)


def test_of_many_at_once_with_one_revision_one_wins(home: Registry) -> None:
    def attempt(number: int) -> int:
        with suppress(ChangedMeanwhile):
            point(home, (number, 100), if_revision=1)
            return 1
        return 0

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, [2, 3] * 8)) == 1


def test_aliases_come_and_go(home: Registry) -> None:
    point(home, (2, 100), alias="stable")
    home.apply(remove_alias, "default", "home", "stable")
    assert list(home.get_adapter("default", "home").aliases) == ["live"]
    with pytest.raises(Conflict):
        home.apply(remove_alias, "default", "home", "live")
    with pytest.raises(InvalidName):
        point(home, (1, 100), alias="@")
    with pytest.raises(NotFound):
        home.apply(point_alias, "default", "nobody", "live", [Target(1, 100)])


def test_retiring(home: Registry) -> None:
    home.apply(retire_version, "default", "home", 3)
    assert list(home.get_adapter("default", "home").ready) == [1, 2]
    with pytest.raises(Conflict, match="live of default/home points to version 1"):
        home.apply(retire_version, "default", "home", 1)
    with pytest.raises(NotFound):
        home.apply(retire_version, "default", "home", 9)
    point(home, (2, 30), (1, 70))
    home.apply(retire_version, "default", "home", 1, force=True)
    assert targets(home) == [(2, 100)]
    home.apply(retire_version, "default", "home", 2, force=True)
    assert home.get_adapter("default", "home").live is None


def test_what_is_being_checked_is_not_retired(home: Registry, make_adapter: AdapterFactory) -> None:
    version, _ = take_in(home, make_adapter(seed=4))
    with pytest.raises(Conflict, match="being checked"):
        home.apply(retire_version, "default", "home", version.number)
    with pytest.raises(Conflict, match="being checked"):
        home.apply(delete_adapter, "default", "home", force=True)


def test_retired_content_can_come_back_as_a_new_version(
    home: Registry, make_adapter: AdapterFactory
) -> None:
    home.apply(retire_version, "default", "home", 3)
    again = register(home, make_adapter(seed=3))
    assert (again.number, again.state) == (4, VersionState.READY)


def test_deleting_keeps_numbers_and_ids_used(home: Registry, make_adapter: AdapterFactory) -> None:
    ids = {v.version_id for v in home.get_adapter("default", "home").versions.values()}
    with pytest.raises(Conflict, match="in service"):
        home.apply(delete_adapter, "default", "home")
    home.apply(delete_adapter, "default", "home", force=True)
    with pytest.raises(NotFound):
        home.get_adapter("default", "home")
    with pytest.raises(NotFound):
        home.apply(delete_adapter, "default", "home")
    version = register(home, make_adapter(seed=1))
    assert version.number == 4
    assert version.version_id not in ids
    assert targets(home) == [(4, 100)], "the first version of its new life is live"


def test_a_key_makes_a_repetition_harmless(home: Registry, make_adapter: AdapterFactory) -> None:
    idempotency = Idempotency("caller", "k")
    source = make_adapter(seed=9)
    first, is_new = take_in(home, source, name="other", idempotency=idempotency)
    assert is_new
    assert take_in(home, source, name="other", idempotency=idempotency) == (first, False)
    with pytest.raises(KeyReused):
        take_in(home, source, name="another", idempotency=idempotency)
    point(home, (2, 100))
    for _ in range(2):
        home.apply(roll_back, "default", "home", idempotency=Idempotency("caller", "back"))
    assert targets(home) == [(1, 100)]
    home.apply(roll_back, "default", "home", idempotency=Idempotency("someone else", "back"))
    assert targets(home) == [(2, 100)]


def test_a_split_divides_by_weight() -> None:
    alias = AliasRecord((Target(2, 10), Target(1, 90)))
    picks = Counter(pick(alias.targets, step / 1000) for step in range(1000))
    assert picks == {2: 100, 1: 900}
    assert alias.main == 1


def test_another_process_sees_a_change(home: Registry, database_url: str) -> None:
    other = Registry(database_url, ContentStore(home.content.root), home.base)
    before = other.catalog
    other.refresh()
    assert other.catalog is before, "nothing changed, nothing is read"
    point(home, (2, 30), (1, 70))
    other.refresh()
    assert other.catalog == home.catalog
    other.apply(delete_adapter, "default", "home", force=True)
    home.refresh()
    assert home.catalog.adapters == {}
    other.close()


def test_the_trail_says_what_was(home: Registry) -> None:
    point(home, (2, 100))
    home.apply(retire_version, "default", "home", 3)
    newest = home.audit(subject="default/home@live")[0]
    assert (newest.action, newest.actor) == ("alias.point", "server")
    assert newest.before == {"targets": [{"version": 1, "weight": 100}]}
    assert newest.after == {"targets": [{"version": 2, "weight": 100}]}
    actions = [entry.action for entry in home.audit()]
    assert actions[:2] == ["version.retire", "alias.point"]
    assert Counter(actions)["version.register"] == 3
    assert [e.id for e in home.audit(limit=2, before_id=newest.id)] == [
        newest.id - 1,
        newest.id - 2,
    ]
    assert home.audit(tenant="nobody") == []


def test_what_failed_leaves_no_trail(home: Registry) -> None:
    before = [entry.id for entry in home.audit()]
    epoch = home.catalog.epoch
    with pytest.raises(InvalidTargets):
        point(home, (9, 100))
    home.refresh()
    assert [entry.id for entry in home.audit()] == before
    assert home.catalog.epoch == epoch
