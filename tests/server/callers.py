"""Keys of every kind of caller."""

from __future__ import annotations

import time
from datetime import timedelta

from adapters_registry.records.keys import create_key, new_key, revoke_key
from adapters_registry.records.tables import now
from adapters_registry.registry import Registry
from server.auth import Keys

EVERYTHING = ["inference", "adapters"]


def make_callers(registry: Registry, keys: Keys) -> dict[str, str]:
    """A key of every kind, by its name; the tenants are acme and other."""
    ended, revoked = new_key(), new_key()
    end = now() + timedelta(seconds=1)
    registry.apply(create_key, ended, "acme", EVERYTHING, expires_at=end)
    registry.apply(create_key, revoked, "acme", EVERYTHING)
    registry.apply(revoke_key, revoked.split("-")[1])
    while now() < end:
        time.sleep(0.01)
    return {
        "none": "",
        "garbage": "lpx-x-" + "y" * 43,
        "expired": ended,
        "revoked": revoked,
        "own, inference": keys.create("acme", ["inference"]),
        "own": keys.create("acme", EVERYTHING),
        "other": keys.create("other", EVERYTHING),
        "admin": keys.create("default", ["admin", "inference"]),
    }
