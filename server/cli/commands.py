"""Groups and commands whose help shows a type only for options that take a value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup


def _without_types_of_flags(parameters: list[Any]) -> list[Any]:
    """Remove the type from flags such as `--json`, which take no value. Returns all parameters."""
    for parameter in parameters:
        if getattr(parameter, "is_flag", False) and parameter.metavar is None:
            parameter.metavar = ""
    return parameters


class PlainCommand(TyperCommand):
    """A command whose flags show no type in its help."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters of a call, with `--help`."""
        return _without_types_of_flags(super().get_params(ctx))


class PlainGroup(TyperGroup):
    """A group of commands whose flags show no type in its help."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters of a call, with `--help`."""
        return _without_types_of_flags(super().get_params(ctx))


class Commands(typer.Typer):
    """A group whose commands are `PlainCommand`s."""

    def __init__(self, **options: Any) -> None:
        super().__init__(cls=PlainGroup, **options)

    def command(self, name: str | None = None, **options: Any) -> Callable[[Any], Any]:
        """Return a decorator that adds a command to the group."""
        return super().command(name, **{"cls": PlainCommand, **options})
