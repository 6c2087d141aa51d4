"""What can go wrong in the registry.

RegistryError
├── InvalidName          a tenant, adapter or alias name that isn't allowed
├── InvalidTargets       an alias can't point there
├── InvalidKey           an API key that can't be made so
├── QuotaExceeded        the tenant may have no more adapters, or bytes of them
├── NotFound             no such tenant, adapter, version or alias
├── Conflict             the state of things doesn't allow it
├── ChangedMeanwhile     it was changed since the client looked
├── KeyReused            an idempotency key that came with another request before
├── SourceRefused        a source that may not be read, or isn't there
├── StoreUnavailable     a hub or an S3-compatible store that doesn't answer, or refuses the server
├── ContentUnavailable   content that is missing or damaged, with no origin to fetch it from
├── InsufficientStorage  the disk, or the budget for it, is full
└── AdapterRejected      content that can't work on this base, with every reason
"""

from __future__ import annotations

from dataclasses import dataclass


class RegistryError(Exception):
    """Base of all; the message says what to do."""


class InvalidName(RegistryError):
    """A tenant, adapter or alias name that isn't allowed."""


class InvalidTargets(RegistryError):
    """An alias can't point there: unknown or unready versions, or weights that aren't 100."""


class InvalidKey(RegistryError):
    """An API key that can't be made so: its scopes, its label, its end."""


class QuotaExceeded(RegistryError):
    """The tenant may have no more adapters, or bytes of them."""


class NotFound(RegistryError):
    """No such tenant, adapter, version or alias."""


class Conflict(RegistryError):
    """The state of things doesn't allow it, as when an alias points to what is to be retired."""


class ChangedMeanwhile(RegistryError):
    """It was changed since the client looked (HTTP's `If-Match` failed)."""


class KeyReused(RegistryError):
    """An idempotency key that came with another request before."""


class SourceRefused(RegistryError):
    """A source that may not be read, or isn't there."""


class StoreUnavailable(RegistryError):
    """A hub or an S3-compatible store that doesn't answer, or refuses the server's credentials."""


class ContentUnavailable(RegistryError):
    """Content that is missing or damaged, with no origin to fetch it from."""


class InsufficientStorage(RegistryError):
    """The disk, or the budget for it, is full."""


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
