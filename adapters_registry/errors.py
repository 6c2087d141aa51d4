"""What can go wrong in the registry.

RegistryError
├── InvalidName          a tenant, adapter or alias name that isn't allowed
├── NotFound             no such tenant, adapter or version
├── SourceRefused        a source that may not be read, or isn't there
└── AdapterRejected      content that can't work on this base, with every reason
"""

from __future__ import annotations

from dataclasses import dataclass


class RegistryError(Exception):
    """Base of all; the message says what to do."""


class InvalidName(RegistryError):
    """A tenant, adapter or alias name that isn't allowed."""


class NotFound(RegistryError):
    """No such tenant, adapter or version."""


class SourceRefused(RegistryError):
    """A source that may not be read, or isn't there."""


@dataclass(frozen=True)
class Reason:
    """Why content was refused: a stable code, a sentence, and the offending key, if any."""

    code: str
    message: str
    key: str | None = None


class AdapterRejected(RegistryError):
    """Content that can't work on this base; `reasons` holds every one found."""

    def __init__(self, reasons: list[Reason]) -> None:
        super().__init__("; ".join(reason.message for reason in reasons))
        self.reasons = reasons
