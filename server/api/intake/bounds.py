"""How large the parts of a decoded JSON body may be. Pure.

After this check a route can rely on it that lists have a bounded length, nesting has a bounded
depth, and all text can be encoded.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from server.errors import InvalidRequest

MAX_ITEMS = 4096
"""The largest number of items of a list, and of fields of an object."""
MAX_ITEMS_OF = {"tools": 512, "documents": 512}
"""The largest number of items of the lists with these names at the top of a body."""
MAX_TOKEN_IDS = 1 << 18
"""The largest number of items of a list of token ids, such as a prompt or allowed tokens."""
MAX_INTEGER = (1 << 63) - 1
"""The largest number at the top of a body: the engine is sent no larger ones."""
MAX_DEPTH = 64
MAX_CONTAINERS = 1 << 17
"""The largest number of objects and lists in a body."""


class _Place(NamedTuple):
    """The place of a value in the body. The path is written out only for an error."""

    outer: _Place | None
    key: str | int
    depth: int

    def __str__(self) -> str:
        before = str(self.outer) if self.outer else ""
        if isinstance(self.key, int):
            return f"{before}[{self.key}]"
        return f"{before}.{self.key}" if before else self.key


def check_bounds(body: dict[str, Any]) -> None:
    """Raise `InvalidRequest`, which names the field, if a part of the body is too large."""
    for name, value in body.items():
        if isinstance(value, int) and abs(value) > MAX_INTEGER:
            raise _error(_Place(None, name, 1), "is too large a number")
    open_values: list[tuple[_Place | None, Any]] = [(None, body)]
    num_containers = 0
    while open_values:
        place, value = open_values.pop()
        num_containers += 1
        if num_containers > MAX_CONTAINERS:
            raise InvalidRequest(f"the body has over {MAX_CONTAINERS} objects and lists")
        if place is not None and place.depth > MAX_DEPTH:
            raise _error(place, f"is nested more than {MAX_DEPTH} levels deep")
        _check_length(place, value)
        depth = place.depth + 1 if place else 1
        if isinstance(value, dict) and not all(map(_can_be_encoded, value)):
            raise _error(place, "has a field whose name is not valid Unicode")
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(part, dict | list):
                open_values.append((_Place(place, key, depth), part))
            elif isinstance(part, str) and not _can_be_encoded(part):
                raise _error(
                    _Place(place, key, depth), "holds half of a surrogate pair: send valid Unicode"
                )


def _check_length(place: _Place | None, value: Any) -> None:
    limit, parts = MAX_ITEMS, "fields"
    if isinstance(value, list):
        limit, parts = MAX_ITEMS, "items"
        if place is not None and place.outer is None:
            limit = MAX_ITEMS_OF.get(str(place.key), MAX_ITEMS)
        if len(value) > limit and all(type(item) is int for item in value):
            limit, parts = MAX_TOKEN_IDS, "token ids"
    if len(value) > limit:
        raise _error(place, f"may have at most {limit} {parts}, and has {len(value)}")


def _can_be_encoded(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _error(place: _Place | None, what: str) -> InvalidRequest:
    param = str(place)[:200] if place else None
    return InvalidRequest(f"{param or 'the body'} {what}", param=param)
