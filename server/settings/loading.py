"""Reads the settings. No other module reads the environment. A flag overrides its variable."""

from __future__ import annotations

import difflib
import logging
import os
import re
from typing import Any

from pydantic import ValidationError

from server.settings.fields import PREFIX, RENAMED, flag_of, variable_of
from server.settings.settings import Settings

log = logging.getLogger(__name__)


class SettingsError(Exception):
    """A setting cannot be used. One line names it and says how to correct it."""


def load_settings(**flags: Any) -> Settings:
    """Read the settings from flags (None: not given) and from the environment.

    A setting may have its old name. A warning then says the new one.

    Raises:
        SettingsError: a `LORAPLEX_` variable is unknown, or a value cannot be used.
    """
    _refuse_variables_of_kubernetes()
    _refuse_unknown_variables()
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        return Settings(**_with_new_names(given))
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        if not first["loc"]:
            raise SettingsError(message) from None
        name = str(first["loc"][0])
        value = f" (it is {first['input']!r})" if first["input"] not in ("", None) else ""
        raise SettingsError(f"{variable_of(name)} (--{flag_of(name)}): {message}{value}") from None


def _with_new_names(flags: dict[str, Any]) -> dict[str, Any]:
    """Return the flags, with values that were given under old names moved to the new ones."""
    flags = dict(flags)
    for old, new in RENAMED.items():
        variable = variable_of(old)
        if old in flags:
            log.warning("--%s is now called --%s", flag_of(old), flag_of(new))
            flags.setdefault(new, flags.pop(old))
        elif variable in os.environ:
            log.warning("%s is now called %s", variable, variable_of(new))
            if variable_of(new) not in os.environ:
                flags.setdefault(new, os.environ[variable])
    return flags


_OF_KUBERNETES = re.compile(r"LORAPLEX_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_\w+)")
"""Variables that a pod gets for a Service whose name is `loraplex` or begins with it."""


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
    known = [variable_of(name) for name in [*Settings.model_fields, *RENAMED]]
    for variable in sorted(os.environ):
        if variable.startswith(PREFIX) and variable not in known:
            nearest = difflib.get_close_matches(variable, known, n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else "`loraplex serve --help` lists all"
            raise SettingsError(f"{variable} is not a setting: {hint}")
