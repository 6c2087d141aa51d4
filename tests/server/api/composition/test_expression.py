"""What a `model` may name as a composition."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.api.composition.expression import MAX_CHARACTERS, is_composition, parse_composition
from server.errors import InvalidRequest


@pytest.mark.parametrize(
    ("model", "parts"),
    [
        ("style*0.7+domain*0.3", [("style", 0.7), ("domain", 0.3)]),
        ("style+acme/domain@3*-0.5", [("style", 1.0), ("acme/domain@3", -0.5)]),
        ("a@sha256:0123456789ab*2", [("a@sha256:0123456789ab", 2.0)]),
    ],
)
def test_parts_with_their_weights(model: str, parts: list[tuple[str, float]]) -> None:
    assert is_composition(model, "base")
    assert parse_composition(model) == parts


def test_what_is_no_composition() -> None:
    assert not is_composition("acme/style@3", "base")
    assert not is_composition("base+2", "base+2"), "the base's name comes first"


@pytest.mark.parametrize(
    "model",
    [
        *("+", "*", "style*", "*0.5", "style+", "+style", "style**2", "style*0.5*2", "a++b"),
        *("style*nan", "style*inf", "style*1e9", "style*--1", "style*0x1", "style*1_0", "a*²"),
        *("style*1234567", "style*0.1234567890", "style* 1", "+".join("abcdefghi")),
        "x" * MAX_CHARACTERS + "*1",
    ],
)
def test_what_cannot_be_read(model: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_composition(model)
    assert caught.value.param == "model"
    assert len(caught.value.message) < 300


@given(st.text(alphabet="ab*+@/.-0123456789", max_size=60))
def test_any_text_is_parts_or_refused(model: str) -> None:
    try:
        parts = parse_composition(model)
    except InvalidRequest:
        return
    assert 1 <= len(parts) <= 8
    assert all(name and abs(weight) < 1e6 for name, weight in parts)
