"""What a model string means is decided here, without a database or an engine."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters_registry.records.catalog import (
    AdapterRecord,
    AliasRecord,
    Catalog,
    Target,
    VersionRecord,
    pick,
)
from adapters_registry.records.tables import VersionState, now
from server.api.resolve import resolve
from server.auth import Caller
from server.errors import ModelNotFound

OWNER = Caller("acme", frozenset({"inference"}))
STRANGER = Caller("other", frozenset({"inference"}))
ADMIN = Caller("other", frozenset({"inference", "admin"}))


def version(number: int, state: VersionState = VersionState.READY) -> VersionRecord:
    return VersionRecord(
        tenant="acme",
        name="bot",
        number=number,
        digest=f"{number:x}" * 64,
        version_id=number,
        state=state,
        rank=8,
        size_bytes=1,
        reasons=[],
        source="",
        metadata={},
        created_at=now(),
    )


VERSIONS = {1: version(1), 2: version(2), 3: version(3, VersionState.REJECTED)}
ALIASES = {
    name: AliasRecord((Target(number, 100),))
    for name, number in {"live": 1, "canary": 2, "broken": 3, "dangling": 9}.items()
}
CATALOG = Catalog({("acme", "bot"): AdapterRecord("acme", "bot", now(), VERSIONS, ALIASES)})


@pytest.mark.parametrize(
    ("model", "number"),
    [
        ("bot", 1),
        ("acme/bot", 1),
        ("bot@1", 1),
        ("bot@2", 2),
        ("bot@live", 1),
        ("bot@canary", 2),
        ("acme/bot@canary", 2),
        ("bot@sha256:222222222222", 2),
        ("bot@sha256:" + "2" * 64, 2),
    ],
)
def test_forms(model: str, number: int) -> None:
    found = resolve(model, OWNER, CATALOG, "base")
    assert found is not None
    assert found.number == number


NOTHING = """bot@3 bot@broken bot@dangling bot@9 bot@ bot@@1 bot@-1 bot@１ bot@sha256:22222222222
Bot other/bot acme/bot/ /bot @1"""


@pytest.mark.parametrize("model", [*NOTHING.split(), "", "bot ", "bot@sha256:" + "3" * 64])
def test_what_names_nothing(model: str) -> None:
    with pytest.raises(ModelNotFound):
        resolve(model, OWNER, CATALOG, "base")


def test_the_base_comes_first() -> None:
    assert resolve("bot", OWNER, CATALOG, "bot") is None


def test_another_tenants_adapter_does_not_exist() -> None:
    messages = set()
    for model in ("acme/bot", "acme/bot@1", "acme/nope"):
        with pytest.raises(ModelNotFound) as error:
            resolve(model, STRANGER, CATALOG, "base")
        messages.add(error.value.message.replace(model, "<model>"))
    assert len(messages) == 1
    assert resolve("acme/bot", ADMIN, CATALOG, "base") == VERSIONS[1]


DIGITS = st.integers(0, 9).map(str)
REFERENCES = st.one_of(
    st.just(""),
    st.sampled_from(["live", "canary", "broken", "dangling", "none"]),
    st.integers(0, 12).map(str),
    st.builds("sha256:{}".format, st.builds(str.__mul__, DIGITS, st.integers(1, 64))),
    st.text(string.ascii_lowercase + ":@/.0123456789", max_size=12),
)


def meant(name: str, reference: str | None) -> int | None:
    """Return the version that a reference to the owner's only adapter means, if any."""
    if name not in ("bot", "acme/bot"):
        return None
    if reference is None or reference in ("live", "1"):
        return 1
    if reference in ("canary", "2"):
        return 2
    digest = reference.removeprefix("sha256:")
    if digest != reference and 12 <= len(digest) <= 64 and set(digest) in ({"1"}, {"2"}):
        return int(digest[0])
    return None


@given(
    st.sampled_from(["bot", "acme/bot", "acme/bot", "bot", "other/bot", "nope", "acme/nope"]),
    st.none() | REFERENCES,
)
def test_a_name_means_one_ready_version_or_nothing(name: str, reference: str | None) -> None:
    model = name if reference is None else f"{name}@{reference}"
    expected = meant(name, reference)
    if expected is None:
        with pytest.raises(ModelNotFound):
            resolve(model, OWNER, CATALOG, "base")
    else:
        assert resolve(model, OWNER, CATALOG, "base") == VERSIONS[expected]


@pytest.mark.parametrize("conversation", [None, "a", "b", "c", "d"])
def test_the_share_of_a_version_of_another_base_goes_to_the_others(
    conversation: str | None,
) -> None:
    states = {1: VersionState.INCOMPATIBLE, 2: VersionState.READY, 3: VersionState.INCOMPATIBLE}
    split = AliasRecord((Target(1, 60), Target(2, 10), Target(3, 30)))
    adapter = AdapterRecord(
        "acme", "bot", now(), {n: version(n, state) for n, state in states.items()}, {"live": split}
    )
    catalog = Catalog(adapters={("acme", "bot"): adapter})
    found = resolve("bot", OWNER, catalog, "base", conversation)
    assert found is not None
    assert found.number == 2
    assert adapter.live is found, "it is listed, too"


def test_weights_of_the_versions_that_are_offered_keep_their_proportion() -> None:
    split = AliasRecord((Target(1, 50), Target(2, 10), Target(3, 40)))
    offered = split.among({2, 3})
    shares = [pick(offered, step / 100) for step in range(100)]
    assert shares == [2] * 20 + [3] * 80
    assert split.among(set()) == split.targets
