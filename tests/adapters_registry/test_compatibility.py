"""A version belongs to the base that it was checked on, whatever other servers' bases are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import update

from adapters_registry import rechecks
from adapters_registry.check.base import BaseSpec
from adapters_registry.compatibility import ALLOW_BASE_MISMATCH, OTHER_BASE, RANK_TOO_LARGE
from adapters_registry.content.store import ContentStore
from adapters_registry.errors import Conflict, InvalidTargets
from adapters_registry.records.aliases import point_alias, roll_back
from adapters_registry.records.catalog import Target, VersionRecord
from adapters_registry.records.retirement import pin_version, retire_version
from adapters_registry.records.tables import Version, VersionState
from adapters_registry.registry import Registry
from adapters_registry.verdicts import begin_recheck
from tests.adapters_registry.adapters import check, register, take_in
from tests.tiny import AdapterFactory

READY, INCOMPATIBLE = VersionState.READY, VersionState.INCOMPATIBLE

Start = Callable[..., Registry]


@pytest.fixture
def start(database_url: str, tmp_path: Path, tiny_base: BaseSpec) -> Iterator[Start]:
    """Open the registry as a server does whose base has this fingerprint; all share the files."""
    opened = []

    def open_registry(fingerprint: str, max_rank: int = tiny_base.max_rank) -> Registry:
        name = f"base-{fingerprint}"
        base = replace(tiny_base, name=name, fingerprint=fingerprint, max_rank=max_rank)
        opened.append(Registry(database_url, ContentStore(tmp_path / "content"), base))
        return opened[-1]

    yield open_registry
    for registry in opened:
        registry.close()


def version_of(registry: Registry, number: int = 1) -> VersionRecord:
    registry.refresh()
    return registry.get_version("default", "home", number)


def recheck(registry: Registry, **arguments: bool) -> list[VersionRecord]:
    due = registry.apply(begin_recheck, "default", "home", **arguments)
    return [check(registry, version) for version in due]


def test_another_base_does_not_offer_it_and_says_why(
    start: Start, make_adapter: AdapterFactory
) -> None:
    register(start("aaa"), make_adapter())
    other = start("bbb")
    version = version_of(other)
    assert version.state is INCOMPATIBLE
    (reason,) = version.reasons
    assert reason["code"] == OTHER_BASE
    assert "base-aaa" in reason["message"]
    assert "base-bbb" in reason["message"]
    assert "loraplex adapters recheck home" in reason["message"]
    assert other.get_adapter("default", "home").live is None
    assert other.find_adapters(INCOMPATIBLE) == {("default", "home")}
    assert other.find_adapters(READY) == set()
    summary = rechecks.summary(other)
    assert summary is not None
    assert "default/home@1" in summary


def test_the_same_base_offers_it_after_a_start(start: Start, make_adapter: AdapterFactory) -> None:
    register(start("aaa"), make_adapter())
    again = start("aaa")
    assert version_of(again).state is READY
    assert rechecks.summary(again) is None


def test_two_bases_keep_their_own_verdicts(start: Start, make_adapter: AdapterFactory) -> None:
    one, other = start("aaa"), start("bbb")
    register(one, make_adapter())
    assert version_of(other).state is INCOMPATIBLE
    assert [version.state for version in recheck(other)] == [READY]
    assert version_of(one).state is version_of(other).state is READY
    assert start("aaa").get_adapter("default", "home").live is not None
    assert start("bbb").get_adapter("default", "home").live is not None


def test_a_refusal_on_one_base_leaves_the_other_alone(
    start: Start, make_adapter: AdapterFactory
) -> None:
    one, other = start("aaa"), start("bbb")
    register(one, make_adapter(config={"base_model_name_or_path": "base-aaa"}))
    version_of(other)
    (due,) = rechecks.begin(other)
    refused = check(other, due)
    assert refused.state is INCOMPATIBLE
    assert [reason["code"] for reason in refused.reasons] == ["base_mismatch"]
    assert version_of(other).reasons == refused.reasons
    assert version_of(one).state is READY
    assert one.content.is_sound(refused.digest)
    assert rechecks.begin(other) == [], "a start doesn't repeat what has a verdict"
    (allowed,) = recheck(other, allow_mismatch=True)
    assert allowed.state is READY


def test_a_recheck_moves_no_alias(start: Start, make_adapter: AdapterFactory) -> None:
    one, other = start("aaa"), start("bbb")
    register(one, make_adapter())
    register(one, make_adapter(seed=1), promote=True)
    one.apply(roll_back, "default", "home")
    version_of(other)
    assert {version.number for version in recheck(other)} == {1, 2}
    live = other.get_adapter("default", "home").live
    assert live is not None
    assert live.number == 1


def test_the_same_files_again_are_checked_on_the_present_base(
    start: Start, make_adapter: AdapterFactory
) -> None:
    files = make_adapter(config={"base_model_name_or_path": "base-aaa"})
    register(start("aaa"), files)
    other = start("bbb")
    version, is_new = take_in(other, files)
    assert not is_new
    assert version.state is INCOMPATIBLE
    assert check(other, version).state is INCOMPATIBLE
    version, _ = take_in(other, files, metadata={ALLOW_BASE_MISMATCH: True}, promote=True)
    assert check(other, version).state is READY


def test_aliases_refuse_what_is_incompatible(start: Start, make_adapter: AdapterFactory) -> None:
    one = start("aaa")
    register(one, make_adapter())
    other = start("bbb")
    register(other, make_adapter(seed=1), promote=True)
    for targets in ([Target(1, 100)], [Target(1, 10), Target(2, 90)]):
        with pytest.raises(InvalidTargets, match=r"1 is not offered .* checked on .*base-aaa"):
            other.apply(point_alias, "default", "home", "live", targets)
    with pytest.raises(Conflict, match="cannot go back: version 1 is not offered"):
        other.apply(roll_back, "default", "home")
    one.apply(pin_version, "default", "home", 1, True)
    with pytest.raises(Conflict, match="is incompatible"):
        other.apply(pin_version, "default", "home", 1, True)
    other.apply(pin_version, "default", "home", 1, False)


def test_a_version_under_check_is_left_to_its_base(
    start: Start, make_adapter: AdapterFactory
) -> None:
    one, other = start("aaa"), start("bbb")
    take_in(one, make_adapter())
    assert other.unfinished() == []
    assert [version.number for version in one.unfinished()] == [1]
    assert version_of(other).state is INCOMPATIBLE
    assert "registered for another base" in version_of(other).reasons[0]["message"]
    assert [version.state for version in recheck(other)] == [READY]
    assert version_of(one).state is INCOMPATIBLE


def test_a_version_that_waits_for_another_base_can_be_retired(
    start: Start, make_adapter: AdapterFactory
) -> None:
    take_in(start("aaa"), make_adapter())
    other = start("bbb")
    other.apply(retire_version, "default", "home", 1)
    assert version_of(other).state is VersionState.RETIRED


def test_versions_of_an_earlier_release_belong_to_the_first_base(
    start: Start, make_adapter: AdapterFactory, caplog: pytest.LogCaptureFixture
) -> None:
    one = start("aaa")
    register(one, make_adapter())
    with one.session() as session:  # as the migration leaves them
        session.execute(update(Version).values(base=None, base_verdicts={}))
    first = start("bbb")
    assert "1 versions are from a release that did not record their base" in caplog.text
    assert version_of(first).state is READY
    assert version_of(start("ccc")).state is INCOMPATIBLE
    assert version_of(start("bbb")).state is READY


def test_a_rank_over_a_later_limit_is_not_offered_and_comes_back(
    start: Start, make_adapter: AdapterFactory
) -> None:
    first = start("aaa")
    register(first, make_adapter(rank=8))
    lower = start("aaa", max_rank=4)
    version = version_of(lower)
    assert version.state is INCOMPATIBLE
    (reason,) = version.reasons
    assert reason["code"] == RANK_TOO_LARGE
    assert "rank 8 is over this server's limit of 4" in reason["message"]
    assert "--max-lora-rank 8" in reason["message"]
    assert "limit of 4" in (rechecks.summary(lower) or "")
    assert lower.get_adapter("default", "home").live is None
    with pytest.raises(InvalidTargets, match="rank 8"):
        lower.apply(point_alias, "default", "home", "next", [Target(1, 100)])
    assert rechecks.begin(lower) == [], "a check would find nothing else"
    (still,) = recheck(lower)
    assert still.state is INCOMPATIBLE
    assert version_of(first).state is READY, "another server's limit is its own"
    assert version_of(start("aaa")).state is READY, "no verdict was recorded"


def test_a_rank_over_the_limit_on_another_base_is_checked_there_once_it_fits(
    start: Start, make_adapter: AdapterFactory
) -> None:
    register(start("aaa"), make_adapter(rank=8))
    lower = start("bbb", max_rank=4)
    assert version_of(lower).reasons[0]["code"] == RANK_TOO_LARGE
    recheck(lower)
    higher = start("bbb")
    assert version_of(higher).reasons[0]["code"] == OTHER_BASE
    assert [version.state for version in recheck(higher)] == [READY]
