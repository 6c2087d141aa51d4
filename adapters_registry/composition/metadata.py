"""What a version's metadata say of the versions that it was made of.

The server writes `COMPOSED` and `FITTED`, and clients cannot. `FIT_RANK` is what a client asks.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

COMPOSED = "composed"
"""The entry of a version's metadata with its parts."""
FITTED = "fitted"
"""The entry of a version that is the best fit of one with a larger rank: which one, and how far."""
FIT_RANK = "fit_rank"
"""The entry of a version that is kept if its rank is over the server's limit, and not rejected."""
ON_REQUEST_NAME = "composed"
"""The name of each tenant's adapter whose versions are the compositions that requests have named.
No other adapter can be registered under it."""
_ON_REQUEST, _USED_AT = "on_request", "used_at"


def composed_of(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what metadata say of a composition. Empty for a version that is none."""
    found = (metadata or {}).get(COMPOSED)
    return found if isinstance(found, dict) else {}


def is_on_request(metadata: Mapping[str, Any] | None) -> bool:
    """Return whether a request has made this version by naming its parts."""
    return composed_of(metadata).get(_ON_REQUEST) is True


def made_on_request(composed: Mapping[str, Any], key: str, at: datetime) -> dict[str, Any]:
    """Return the entry of a composition that a request names: its key, and that it is used now."""
    return {**composed, _ON_REQUEST: True, "key": key, _USED_AT: at.isoformat()}


def used_at(metadata: Mapping[str, Any] | None) -> datetime | None:
    """Return when a request was known to use the composition. None if that is not recorded."""
    text = composed_of(metadata).get(_USED_AT)
    return datetime.fromisoformat(text) if isinstance(text, str) else None


def with_use(metadata: Mapping[str, Any], at: datetime) -> dict[str, Any]:
    """Return the metadata with a new time of use."""
    return {**metadata, COMPOSED: {**composed_of(metadata), _USED_AT: at.isoformat()}}
