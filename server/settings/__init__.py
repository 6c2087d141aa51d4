"""The settings object. It is validated at start and never changes.

Each field is an environment variable (`LORAPLEX_` and its name in capitals). Each field of the
server is also a flag of `loraplex serve`.
"""

from adapters_registry.check.ranks import RANK_LIMITS
from server.settings.fields import PREFIX, RENAMED, flag_of, group_of, variable_of
from server.settings.loading import SettingsError, load_settings
from server.settings.settings import Settings

__all__ = [
    "PREFIX",
    "RANK_LIMITS",
    "RENAMED",
    "Settings",
    "SettingsError",
    "flag_of",
    "group_of",
    "load_settings",
    "variable_of",
]
