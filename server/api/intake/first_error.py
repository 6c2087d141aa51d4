"""Makes one clear error of what pydantic says about a body."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from server.errors import InvalidRequest
from server.errors.own_words import in_own_words, of_validator

_WRONG_KIND = frozenset({"literal_error", "union_tag_invalid", "union_tag_not_found"})
"""Errors which say that an item is of another kind than the one that was tried."""


def first_error(error: ValidationError, body: dict[str, Any]) -> InvalidRequest:
    """Return the error that helps most, with the field's path in the body (`messages[3].role`).

    An item that may be of several kinds has errors for each of them. What counts is the kind that
    the item comes closest to: its tag is right, its deepest error is furthest inside, and it has
    the fewest errors.
    """
    by_kind: dict[tuple[str | int, ...], list[tuple[str, int, Any]]] = {}
    for detail in error.errors(include_url=False, include_context=False, include_input=False):
        path, depth, kind = _place_in(body, detail["loc"], detail["type"] == "missing")
        by_kind.setdefault(kind, []).append((path, depth, detail))

    def distance(errors: list[tuple[str, int, Any]]) -> tuple[bool, int, int]:
        is_wrong_kind = any(detail["type"] in _WRONG_KIND for _, _, detail in errors)
        return is_wrong_kind, -max(depth for _, depth, _ in errors), len(errors)

    path, _, detail = min(by_kind.values(), key=distance)[0]
    message = in_own_words(of_validator(str(detail["msg"])))
    return InvalidRequest(f"{path or 'the body'}: {message}"[:1000], param=path[:200] or None)


def _place_in(
    body: Any, location: tuple[str | int, ...], is_missing: bool
) -> tuple[str, int, tuple[str | int, ...]]:
    """Split pydantic's location into the path within the body and the kinds that were tried.

    pydantic lists both in one tuple. A part that leads nowhere in the body names a kind.
    """
    path, depth, kinds = "", 0, []
    for index, part in enumerate(location):
        is_last = index == len(location) - 1
        if isinstance(part, int) and isinstance(body, list) and part < len(body):
            path, body = f"{path}[{part}]", body[part]
        elif isinstance(body, dict) and (part in body or (is_last and is_missing)):
            path, body = f"{path}.{part}" if path else str(part), body.get(part)
        else:
            kinds.append(part)
            continue
        depth += 1
    return path, depth, tuple(kinds)
