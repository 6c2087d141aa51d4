"""The console's places, and which scopes open each of them."""

from __future__ import annotations

from dataclasses import dataclass

from adapters_registry.records.keys import ADAPTERS, ADMIN, INFERENCE
from server.auth import Caller

ROOT = "/console"
MANAGERS = frozenset({ADMIN, ADAPTERS})
"""Those whom the API lets manage adapters: all of them, or their own."""
ADMINS = frozenset({ADMIN})
ASKERS = frozenset({INFERENCE})
ANYONE = frozenset({ADMIN, ADAPTERS, INFERENCE})


@dataclass(frozen=True)
class ConsolePage:
    """A page that the navigation names, and what stands below its path."""

    path: str
    title: str
    scopes: frozenset[str]
    """A caller needs one of them."""

    def holds(self, path: str) -> bool:
        """Whether a path, which begins with `/console`, is this page or below it."""
        return path == ROOT + self.path or path.startswith(f"{ROOT}{self.path}/")

    def is_open_to(self, caller: Caller) -> bool:
        """Whether the caller may open it."""
        return bool(self.scopes & caller.scopes)


PLACES = (
    ConsolePage("/overview", "Overview", MANAGERS),
    ConsolePage("/adapters", "Adapters", MANAGERS),
    ConsolePage("/register", "Register", MANAGERS),
    ConsolePage("/playground", "Playground", ASKERS),
    ConsolePage("/usage", "Usage", MANAGERS),
    ConsolePage("/tenants", "Tenants", ADMINS),
    ConsolePage("/keys", "Keys", ADMINS),
    ConsolePage("/audit", "Audit", MANAGERS),
    ConsolePage("/loadtests", "Load tests", ADMINS),
)
"""In the order of the navigation. What is below none of them is open to every valid key."""


def places_for(caller: Caller) -> list[ConsolePage]:
    """Return the places that a caller may open."""
    return [place for place in PLACES if place.is_open_to(caller)]


def place_of(path: str) -> ConsolePage | None:
    """Return the place of a path, which begins with `/console`."""
    return next((place for place in PLACES if place.holds(path)), None)
