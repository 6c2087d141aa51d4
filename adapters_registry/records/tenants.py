"""Tenants, which own adapters and keys. Operations for `Registry.apply`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from datetime import datetime

from sqlalchemy import func, select

from adapters_registry.errors import Conflict, NotFound
from adapters_registry.names import DEFAULT_TENANT, check_name
from adapters_registry.records.access import suspension
from adapters_registry.records.access.suspension import Suspension
from adapters_registry.records.audit import write_entry
from adapters_registry.records.change import Change
from adapters_registry.records.idempotency import (
    Idempotency,
    find_result,
    fingerprint_of,
    keep_result,
)
from adapters_registry.records.keys import revoke_all
from adapters_registry.records.tables import Adapter, Tenant, new_id, now
from adapters_registry.trust.policy import TenantPolicy


@dataclass(frozen=True)
class Quota:
    """What a tenant may use; None is without limit. Rates of requests hold on each server."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent_requests: int | None = None
    max_tokens: int | None = None
    """The longest answer in tokens. All choices of a request share it."""
    choices: int | None = None
    """How many answers one request may ask for: `n` times the number of its prompts."""
    adapters: int | None = None
    adapter_bytes: int | None = None
    """Of all its versions whose files are still kept."""
    versions: int | None = None
    """All its versions whose files are still kept."""
    registrations_per_minute: int | None = None
    """New versions, whatever the gate says of them; on all servers together."""
    compositions: int = 8
    """Compositions that its requests name, kept at a time. 0 turns them off."""
    weight: int = 1
    """The tenant's share when tenants wait for each other: twice the weight, twice the tokens."""
    service_tiers: tuple[str, ...] = ()
    """The service tiers that its requests may ask for besides the default one."""

    def __post_init__(self) -> None:
        # A list comes from the database and from JSON.
        object.__setattr__(self, "service_tiers", tuple(sorted(set(self.service_tiers))))


@dataclass(frozen=True)
class TenantRecord:
    """A tenant, as the rest of the program sees it."""

    name: str
    created_at: datetime
    quota: Quota = Quota()
    id: str = ""
    """Never given to another tenant, unlike the name."""
    reused_at: datetime | None = None
    """When the name was given again, if it was another tenant's before."""
    suspension: Suspension | None = None
    policy: TenantPolicy = field(default_factory=TenantPolicy)

    @classmethod
    def of(cls, row: Tenant) -> TenantRecord:
        """Return the record of a row."""
        return cls(
            row.name,
            row.created_at,
            Quota(**row.quota),
            row.id,
            row.reused_at,
            Suspension.of(row),
            TenantPolicy.of(row.policy),
        )


def create_tenant(
    change: Change, name: str, *, idempotency: Idempotency | None = None
) -> TenantRecord:
    """Create a tenant. If another tenant had the name before, nothing passes to the new one.

    Raises:
        InvalidName: the name is not allowed.
        Conflict: a tenant has this name.
        KeyReused: the idempotency key came with another request before.
    """
    row = change.session.get(Tenant, check_name(name, "tenant"))
    if idempotency:
        fingerprint = fingerprint_of("tenant", name)
        if find_result(change, idempotency, fingerprint) and row is not None:
            return TenantRecord.of(row)
        keep_result(change, idempotency, fingerprint)
    if row is not None and not row.deleted:
        raise Conflict(f"there is a tenant {name!r} already")
    if row is None:
        row = Tenant(name=name)
        change.session.add(row)
    else:
        row.id, row.created_at, row.reused_at = new_id(), now(), now()
    row.deleted, row.quota, row.suspension, row.policy = False, {}, None, {}
    row.epoch = change.epoch
    change.session.flush()
    write_entry(change.session, "tenant.create", name, name, None, {"deleted": False})
    return TenantRecord.of(row)


def delete_tenant(change: Change, name: str) -> None:
    """Delete a tenant and revoke its keys.

    Raises:
        NotFound: there is no such tenant.
        Conflict: it has adapters, it is the default tenant, or it has the last valid admin key.
    """
    row = require_tenant(change, name)
    if name == DEFAULT_TENANT:
        raise Conflict(f"the tenant {name!r} cannot be deleted")
    owned = select(func.count()).where(Adapter.tenant == name, Adapter.deleted.is_(False))
    if num_adapters := change.session.scalar(owned):
        raise Conflict(f"the tenant {name!r} has {num_adapters} adapters: delete them first")
    revoke_all(change, name)
    row.deleted, row.epoch = True, change.epoch
    before, after = {"deleted": False}, {"deleted": True}
    write_entry(change.session, "tenant.delete", name, name, before, after)


def set_quota(change: Change, name: str, quota: Quota) -> TenantRecord:
    """Replace the quota of a tenant. Raises `NotFound` if there is no such tenant."""
    row = require_tenant(change, name)
    unset = asdict(Quota())
    fields = {k: v for k, v in asdict(quota).items() if v != unset[k]}
    after = {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}
    before = row.quota
    if before != after:
        row.quota, row.epoch = after, change.epoch
        write_entry(change.session, "tenant.quota", name, name, before, after)
    return TenantRecord.of(row)


def suspend_tenant(change: Change, name: str, reason: str = "") -> TenantRecord:
    """Have all requests of a tenant refused, and everybody's requests for its adapters.

    Raises `NotFound` if there is no such tenant.
    """
    row = require_tenant(change, name)
    suspension.begin(change, row, reason, by_admin=True)
    return TenantRecord.of(row)


def resume_tenant(change: Change, name: str) -> TenantRecord:
    """End the suspension of a tenant, if there is one. Raises `NotFound` if there is no tenant."""
    row = require_tenant(change, name)
    suspension.end(change, row, by_admin=True)
    return TenantRecord.of(row)


def set_policy(change: Change, name: str, policy: TenantPolicy) -> TenantRecord:
    """Replace the policy of a tenant. It holds for what comes from then on.

    Raises:
        NotFound: there is no such tenant.
        InvalidPolicy: the policy cannot be used.
    """
    policy.check()
    row = require_tenant(change, name)
    before, record = TenantPolicy.of(row.policy), policy.to_record()
    if row.policy != record:
        row.policy, row.epoch = record, change.epoch
        shown = before.to_audit(), policy.to_audit()
        write_entry(change.session, "tenant.policy", name, name, *shown)
    return TenantRecord.of(row)


def require_tenant(change: Change, name: str) -> Tenant:
    """Return a tenant's row. Raises `NotFound` if there is no such tenant."""
    row = change.session.get(Tenant, name)
    if row is None or row.deleted:
        raise no_tenant(name)
    return row


def no_tenant(name: str) -> NotFound:
    """Return the error for a tenant that does not exist, or that the caller may not know of."""
    return NotFound(f"there is no tenant {name[:80]!r}")
