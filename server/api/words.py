"""Describes changes of the registry in words, for the audit trail and the commands."""

from __future__ import annotations

import json
from typing import Any


def targets_in_words(targets: list[dict[str, int]]) -> str:
    """Return where an alias points: `@2`, or `10 % @2, 90 % @1`."""
    if len(targets) == 1:
        return f"@{targets[0]['version']}"
    return ", ".join(f"{target['weight']} % @{target['version']}" for target in targets)


def signer_in_words(metadata: dict[str, Any]) -> str | None:
    """Return who has signed a version with these metadata, or None if nobody had to."""
    signature = metadata.get("signature")
    return f"signed by {_value_in_words('signature', signature)}" if signature else None


def change_in_words(before: dict[str, Any] | None, after: dict[str, Any] | None) -> str:
    """Return a text of each changed field, for example `state: ready → retired`."""
    before, after = before or {}, after or {}
    fields = [field for field in {**before, **after} if before.get(field) != after.get(field)]
    return "; ".join(_field_in_words(field, before, after) for field in fields)


def _field_in_words(field: str, before: dict[str, Any], after: dict[str, Any]) -> str:
    new = _value_in_words(field, after.get(field))
    if field not in before:
        return f"{field}: {new}"
    return f"{field}: {_value_in_words(field, before[field])} → {new}"


def _value_in_words(field: str, value: Any) -> str:
    match value:
        case None | []:
            return "none"
        case dict() if not value:  # the pattern {} is every dictionary's
            return "none"
        case bool():
            return "yes" if value else "no"
        case list() if field == "targets":
            return targets_in_words(value)
        case list():
            return ", ".join(_value_in_words("", item) for item in value)
        case (
            {"signer": who, "fingerprint": proof}
            | {"signer": who, "issuer": proof}
            | {"name": who, "fingerprint": proof}
            | {"identity": who, "issuer": proof}
        ):
            return f"{who} ({proof})"
        case {"signer": who}:  # as a release before has recorded it
            return str(who)
        case dict():
            return json.dumps(value)
        case _:
            return str(value)
