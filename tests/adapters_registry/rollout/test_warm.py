"""Warm promotions in the database; on SQLite and PostgreSQL."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest

from adapters_registry.errors import ChangedMeanwhile, InvalidTargets
from adapters_registry.records.aliases import point_alias
from adapters_registry.records.catalog import Target
from adapters_registry.records.retirement import retire_version
from adapters_registry.records.servers import (
    ServerFigures,
    forget_server,
    read_servers,
    report_server,
)
from adapters_registry.records.tables import now
from adapters_registry.registry import Registry
from adapters_registry.rollout import warm
from adapters_registry.rollout.promotion import WarmPromotion, Warmth
from adapters_registry.rollout.reports import read_warmth, report_warmth
from tests.adapters_registry.adapters import register
from tests.tiny import AdapterFactory


@pytest.fixture
def home(registry: Registry, make_adapter: AdapterFactory) -> Registry:
    """A registry whose adapter `home` has three ready versions; the first is live."""
    for seed in (1, 2, 3):
        register(registry, make_adapter(seed=seed))
    return registry


def begin(registry: Registry, number: int = 2, if_revision: int | None = None) -> WarmPromotion:
    return registry.apply(
        warm.begin,
        "default",
        "home",
        "live",
        [Target(number, 100)],
        server="a",
        wait=timedelta(seconds=60),
        if_revision=if_revision,
    )


def live(registry: Registry) -> list[Target]:
    return list(registry.get_adapter("default", "home").aliases["live"].targets)


def test_every_server_sees_it_and_says_how_warm_it_is(home: Registry) -> None:
    promotion = begin(home)
    assert live(home) == [(1, 100)]
    assert home.get_adapter("default", "home").warming == promotion
    assert [adapter.id for adapter in home.catalog.warming] == ["default/home"]
    with home.session() as session:
        report_warmth(session, "a", {promotion.epoch: Warmth.WARM})
        report_warmth(session, "b", {})
        said = read_warmth(session, promotion.epoch)
    assert said == {"a": Warmth.WARM, "b": Warmth.UNHEARD}
    finished = home.apply(warm.finish, "default", "home", promotion)
    assert live(home) == [(2, 100)]
    assert finished.late == {"b": Warmth.UNHEARD}
    assert home.get_adapter("default", "home").warming is None
    assert home.apply(warm.finish, "default", "home", promotion).alias is None, "once only"


def test_two_threads_of_a_server_make_its_row_at_once(registry: Registry) -> None:
    def report() -> None:
        with registry.session() as session:
            report_server(session, "a", "host:1", now(), ServerFigures("up", 8))

    other = threading.Thread(target=report)
    with registry.session() as session:
        report_warmth(session, "a", {7: Warmth.WARM})
        other.start()
        other.join(0.3)
    other.join()
    with registry.session() as session:
        assert read_warmth(session, 7) == {"a": Warmth.WARM}
        assert [record.name for record in read_servers(session)] == ["host:1"]


def test_a_server_that_ends_is_waited_for_no_more(home: Registry) -> None:
    with home.session() as session:
        report_warmth(session, "a", {})
        report_warmth(session, "b", {})
        forget_server(session, "b")
        assert set(read_warmth(session, 1)) == {"a"}


@pytest.mark.parametrize("how", ["moved", "retired", "replaced"])
def test_another_change_comes_first(home: Registry, how: str) -> None:
    promotion = begin(home)
    match how:
        case "moved":
            home.apply(point_alias, "default", "home", "live", [Target(3, 100)])
        case "retired":
            home.apply(retire_version, "default", "home", 2)
        case "replaced":
            begin(home, 3)
    before = live(home)
    assert home.apply(warm.finish, "default", "home", promotion).alias is None
    assert live(home) == before
    assert home.audit(adapter="default/home", action="alias.warm.cancel")
    assert bool(home.get_adapter("default", "home").warming) == (how == "replaced")


def test_it_is_refused_at_once_where_a_promotion_would_be(home: Registry) -> None:
    with pytest.raises(InvalidTargets):
        begin(home, 9)
    with pytest.raises(ChangedMeanwhile):
        begin(home, if_revision=7)
    assert home.get_adapter("default", "home").warming is None
