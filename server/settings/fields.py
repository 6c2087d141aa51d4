"""Declares settings, and derives the names of their variables and flags."""

from __future__ import annotations

from typing import Any

from pydantic import Field
from pydantic.fields import FieldInfo

PREFIX = "LORAPLEX_"
RENAMED = {"other_rounding": "base_quantization_mismatch"}
"""Old names of settings, with the new ones. The old names still work, with a warning."""


def setting(default: Any, group: str, description: str, **constraints: Any) -> Any:
    """Declare a setting. `group` is the heading under which help lists it."""
    return Field(
        default=default, description=description, json_schema_extra={"group": group}, **constraints
    )


def variable_of(field_name: str) -> str:
    """Return the environment variable of a field."""
    return PREFIX + field_name.upper()


def flag_of(field_name: str) -> str:
    """Return the flag of a field, without its dashes."""
    return field_name.replace("_", "-")


def group_of(field: FieldInfo) -> str:
    """Return the heading under which help and documentation list a field."""
    assert isinstance(field.json_schema_extra, dict)
    return str(field.json_schema_extra["group"])
