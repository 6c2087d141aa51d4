"""Which names tenants, adapters and aliases may have.

Names are plain lower-case ASCII. So two names that look alike are equal, `@` and `/` keep their
meaning in a model string, and every name is safe as a label in metrics and logs.
"""

from __future__ import annotations

import re

from adapters_registry.errors import InvalidName

DEFAULT_TENANT = "default"
LIVE = "live"

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?", re.ASCII)


def is_name(name: str) -> bool:
    """Return whether tenants, adapters and aliases may have this name."""
    return _NAME.fullmatch(name) is not None and ".." not in name


def check_name(name: str, kind: str) -> str:
    """Return the name, or raise `InvalidName` with the rule. `kind` says what the name is for."""
    if not is_name(name):
        raise InvalidName(
            f"{kind} name {name[:80]!r} is not allowed: use 1 to 64 of a-z, 0-9, '-', '_', '.', "
            "beginning and ending with a letter or digit, without '..'" + _suggestion(name)
        )
    return name


def _suggestion(name: str) -> str:
    """Offer a name that would do: most names on hubs have capitals."""
    plain = re.sub(r"[^a-z0-9_.-]+", "-", name.lower()[:64])
    plain = re.sub(r"\.{2,}", ".", plain).strip("._-")
    return f"; try {plain!r}" if _NAME.fullmatch(plain) else ""
