"""Bodies that are too long, too deep, or not text."""

from __future__ import annotations

from typing import Any

import pytest

from server.api.intake.bounds import MAX_CONTAINERS, MAX_DEPTH, MAX_ITEMS, check_bounds
from server.errors import InvalidRequest


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": [{}] * (MAX_ITEMS + 1)}, "messages"),
        ({"messages": [{"content": [1.5] * (MAX_ITEMS + 1)}]}, "messages[0].content"),
        ({"tools": [{}] * 513}, "tools"),
        ({"prompt": [1] * ((1 << 18) + 1)}, "prompt"),
        ({"a": {"b": {str(key): 1 for key in range(MAX_ITEMS + 1)}}}, "a.b"),
        ({"schema": nested(MAX_DEPTH)}, "schema" + ".a" * MAX_DEPTH),
        ({"messages": [{"content": "\ud800"}]}, "messages[0].content"),
        ({"messages": [{"\udfff": 1}]}, "messages[0]"),
        ({str(key): 1 for key in range(MAX_ITEMS + 1)}, None),
        ({"lists": [[{}] * 4000] * (MAX_CONTAINERS // 4000 + 1)}, None),
    ],
)
def test_what_is_too_large_is_named(body: dict[str, Any], param: str | None) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_bounds(body)
    assert caught.value.param == (param[:200] if param else None)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"messages": [{"role": "user", "content": "hi \U0001f600"}] * MAX_ITEMS},
        {"prompt": [7] * (1 << 18)},
        {"schema": nested(MAX_DEPTH - 2)},
        {"tools": [{}] * 512},
    ],
)
def test_what_is_right_passes(body: dict[str, Any]) -> None:
    check_bounds(body)
