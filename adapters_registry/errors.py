"""What can go wrong in the registry. Each class has a `code` that clients can rely on.

RegistryError
├── InvalidName          a tenant, adapter or alias name that is not allowed
├── InvalidMetadata      metadata that is too large
├── InvalidTargets       an alias cannot point there
├── InvalidCanary        a judged canary cannot have this plan
├── InvalidKey           an API key cannot be made like this
├── CannotCompose        versions that cannot be added to one, or not at this rank
├── InvalidPolicy        a tenant's policy that cannot be used
├── QuotaExceeded        the tenant may have no more adapters, versions or bytes of them
├── NotFound             no such tenant, adapter, version or alias
├── Conflict             the present state does not allow it
├── ChangedMeanwhile     it was changed since the client read it
├── CheckedElsewhere     another server checks the version, or has decided on it
├── KeyReused            an idempotency key that came with another request before
├── SourceRefused        a source that may not be read, or does not exist
├── SignatureRefused     files whose signature does not fit, or that lack one
├── StoreUnavailable     a hub, a store or a registry that does not answer, or refuses the server
│   └── RegistryBusy     too many changes wait for the database
├── ContentUnavailable   content that is missing or damaged, with no origin to fetch it from
├── InsufficientStorage  the disk, or the budget for it, is full
└── AdapterRejected      content that cannot work on this base, with every reason
"""

from __future__ import annotations

from dataclasses import dataclass, field


class RegistryError(Exception):
    """Base of all errors of the registry; the message says what to do."""

    code = "invalid_request"
    param: str | None = None
    """The field of the request that is wrong, if it is a field."""


class InvalidName(RegistryError):
    """The name of a tenant, adapter or alias is not allowed."""

    code = "invalid_name"


class InvalidMetadata(RegistryError):
    """Metadata is larger than the registry accepts."""

    code, param = "metadata_too_large", "metadata"


class InvalidTargets(RegistryError):
    """An alias cannot point there: unknown or unready versions, or weights that are not 100."""

    code, param = "invalid_targets", "targets"


class InvalidCanary(RegistryError):
    """A judged canary cannot have these steps, criteria or data. `param` is the field."""

    code = "invalid_canary"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class InvalidKey(RegistryError):
    """An API key cannot have these scopes, this label or this end."""

    code = "invalid_key"


class CannotCompose(RegistryError):
    """These versions cannot be added with these weights, or the sum's rank is too large."""

    code, param = "cannot_compose", "parts"


class InvalidPolicy(RegistryError):
    """A tenant's policy has a value that is not allowed."""

    code = "invalid_policy"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class QuotaExceeded(RegistryError):
    """The tenant may have no more adapters, versions or bytes of them."""

    code = "quota_exceeded"


class NotFound(RegistryError):
    """No such tenant, adapter, version or alias."""

    code = "not_found"


class Conflict(RegistryError):
    """The present state does not allow it: for example, an alias points to the version."""

    code = "conflict"


class ChangedMeanwhile(RegistryError):
    """It was changed since the client read it (HTTP's `If-Match` failed)."""

    code = "changed_meanwhile"


class CheckedElsewhere(RegistryError):
    """Another server checks the version, or has decided on it."""

    code = "checked_elsewhere"


class KeyReused(RegistryError):
    """An idempotency key came with another request before."""

    code = "idempotency_key_reused"


class SourceRefused(RegistryError):
    """A source may not be read, or does not exist."""

    code = "source_refused"


class SignatureRefused(RegistryError):
    """The files have no signature that the tenant's policy trusts, or are not what was signed."""

    code = "signature_refused"


class StoreUnavailable(RegistryError):
    """A hub, a store or a registry does not answer, or refuses the server's credentials."""

    code = "store_unavailable"


class RegistryBusy(StoreUnavailable):
    """Too many changes wait for the database. The client should try again in a moment."""

    code = "registry_busy"


class ContentUnavailable(RegistryError):
    """Content is missing or damaged, and there is no origin to fetch it from."""

    code = "content_unavailable"


class InsufficientStorage(RegistryError):
    """The disk, or the budget for it, is full."""

    code = "insufficient_storage"


@dataclass(frozen=True)
class Reason:
    """One cause why content was refused: a stable code, a sentence with the remedy, and where."""

    code: str
    message: str
    key: str | None = None
    """The first tensor, module or configuration key of which it holds, if any."""
    count: int = 1
    """Of how many it holds."""
    keys: list[str] = field(default_factory=list)
    """The first few of them."""


class AdapterRejected(RegistryError):
    """Content cannot work on this base. `reasons` holds every reason that was found."""

    code = "adapter_rejected"

    def __init__(self, reasons: list[Reason]) -> None:
        super().__init__("; ".join(reason.message for reason in reasons))
        self.reasons = reasons
