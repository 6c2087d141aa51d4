"""Reads the settings: the only reader of the environment. A flag wins over its variable."""

from __future__ import annotations

import difflib
import os
import re
from typing import Any

from pydantic import ValidationError

from server.settings.fields import PREFIX, flag_of, variable_of
from server.settings.settings import Settings


class SettingsError(Exception):
    """A setting that can't be used; one line that names it and says how to mend it."""


def load_settings(**flags: Any) -> Settings:
    """Settings from flags (None: not given) and the environment.

    Raises:
        SettingsError: an unknown `LORAPLEX_` variable, or a value that can't be used.
    """
    _refuse_variables_of_kubernetes()
    _refuse_unknown_variables()
    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        if not first["loc"]:
            raise SettingsError(message) from None
        name = str(first["loc"][0])
        given = f" (it is {first['input']!r})" if first["input"] not in ("", None) else ""
        raise SettingsError(f"{variable_of(name)} (--{flag_of(name)}): {message}{given}") from None


_OF_KUBERNETES = re.compile(r"LORAPLEX_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_\w+)")
"""Variables that a pod gets for a Service whose name is, or begins with, `loraplex`."""


def _refuse_variables_of_kubernetes() -> None:
    for variable, value in sorted(os.environ.items()):
        is_port = variable.startswith(PREFIX) and variable.endswith("PORT") and "://" in value
        if is_port or _OF_KUBERNETES.fullmatch(variable):
            raise SettingsError(
                f"{variable} looks like a variable that Kubernetes makes for a Service called "
                "loraplex: set `enableServiceLinks: false` in the pod, or give the Service "
                "another name"
            )


def _refuse_unknown_variables() -> None:
    known = [variable_of(name) for name in Settings.model_fields]
    for variable in sorted(os.environ):
        if variable.startswith(PREFIX) and variable not in known:
            nearest = difflib.get_close_matches(variable, known, n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else "`loraplex serve --help` lists all"
            raise SettingsError(f"{variable} is no setting: {hint}")
