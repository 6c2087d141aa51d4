"""Tenants and their keys. All routes but `whoami` are for admins only."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta
from typing import Annotated, Literal

from fastapi import Query, Request, Response
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from adapters_registry.records.access.key_life import rotate_key
from adapters_registry.records.keys import KeyRecord, new_key, read_keys, revoke_key
from adapters_registry.records.tenants import (
    Quota,
    TenantRecord,
    create_tenant,
    delete_tenant,
    no_tenant,
    resume_tenant,
    set_quota,
    suspend_tenant,
)
from adapters_registry.registry import Registry
from server.api.admin.bodies import SuspensionAsked, SuspensionBody, suspension_body
from server.api.admin.idempotency import IdempotencyHeader, idempotency
from server.api.admin.paging import unknown_cursor
from server.api.routes import Routes
from server.auth import Caller, Keys
from server.workers import Workers

MAX_QUOTA = 1 << 53  # beyond it, numbers aren't exact in every client's JSON

Limit = Annotated[int, Query(ge=1, le=1000)]
Rate = Annotated[int | None, Field(ge=1, le=MAX_QUOTA)]
Number = Annotated[int | None, Field(ge=0, le=MAX_QUOTA)]
After = Annotated[str, Query(description="The `next` of the page before.")]


class NewTenant(BaseModel):
    """A tenant to create."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(examples=["acme"])


class QuotaBody(BaseModel):
    """What a tenant may use. Rates hold on each server. Null means without limit."""

    model_config = ConfigDict(extra="forbid", from_attributes=True)

    requests_per_minute: Rate = None
    tokens_per_minute: Rate = Field(
        None, description="In and out: reserved before, settled after the answer."
    )
    concurrent_requests: Rate = None
    max_tokens: Rate = Field(None, description="The longest answer; all choices share it.")
    choices: Rate = Field(None, description="Answers of one request: n, times its prompts.")
    adapters: Number = None
    adapter_bytes: Number = Field(
        None, description="Bytes of its versions' files, until they are removed."
    )
    versions: Number = Field(None, description="Versions whose files are kept.")
    registrations_per_minute: Rate = Field(
        None, description="New versions, on all servers together."
    )
    compositions: int = Field(
        8,
        ge=0,
        le=1000,
        description="Compositions that its requests name (`style*0.7+domain*0.3`), kept at a "
        "time. 0 turns them off.",
    )
    weight: int = Field(
        1,
        ge=1,
        le=1000,
        description="Its share while tenants wait: twice the weight, twice the tokens.",
    )
    service_tiers: list[Literal["flex", "priority"]] = Field(
        [],
        max_length=2,
        description="The tiers that its requests may ask for besides the default one.",
    )


class TenantBody(BaseModel):
    """A tenant."""

    name: str
    num_adapters: int
    quota: QuotaBody
    suspended: SuspensionBody | None = Field(description="Null while it is in service.")
    created_at: datetime


class TenantPage(BaseModel):
    """A page of tenants."""

    data: list[TenantBody]
    next: str | None = Field(description="The `after` of the next page; null on the last page.")


class NewKey(BaseModel):
    """A key to create."""

    model_config = ConfigDict(extra="forbid")

    tenant: str = Field(examples=["acme"])
    scopes: list[Literal["inference", "adapters", "admin"]] = Field(
        default=["inference"],
        min_length=1,
        description="`adapters` manages the tenant's own adapters, `admin` everything of everyone.",
    )
    label: str = Field("", description="What it is for.", examples=["ci"])
    expires_at: AwareDatetime | None = Field(
        None, description="When it expires; null: as late as the server allows, or never."
    )


class KeyBody(BaseModel):
    """A key, without its secret."""

    model_config = ConfigDict(from_attributes=True)

    id: str = Field(description="The public part, as the audit trail names it.")
    tenant: str
    scopes: list[str]
    label: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    replaced_by: str | None = Field(description="The id of the key that a rotation made instead.")

    @classmethod
    def of(cls, key: KeyRecord) -> KeyBody:
        """Return the body of a record."""
        return cls.model_validate(key)


class CreatedKey(KeyBody):
    """A key that was just created. It cannot be read again."""

    key: str = Field(description="The whole key, shown only now.")


class KeyRotation(BaseModel):
    """How a key is replaced."""

    model_config = ConfigDict(extra="forbid")

    overlap_seconds: int = Field(
        86400, ge=0, le=30 * 86400, description="How long the old key stays valid."
    )
    expires_at: AwareDatetime | None = Field(
        None, description="When the new key expires; null: it lives as long as the old one was to."
    )


class RotatedKey(CreatedKey):
    """A key that replaces another one."""

    replaces: str = Field(description="The id of the old key.")
    replaced_until: datetime = Field(description="Until when the old key is valid.")


class CallerBody(BaseModel):
    """Whose key a request has."""

    tenant: str
    scopes: list[str]
    key_id: str = Field(description="The key's public part.")


class KeyPage(BaseModel):
    """A page of keys, oldest first."""

    data: list[KeyBody]
    next: str | None = Field(description="The `after` of the next page; null on the last page.")


def router(registry: Registry, keys: Keys, workers: Workers) -> Routes:
    """Return the routes of tenants and keys."""
    routes = Routes(tags=["admin"])

    @routes.post("/tenants", status_code=201)
    async def create(
        request: Request, body: NewTenant, idempotency_key: IdempotencyHeader = None
    ) -> TenantBody:
        """Create a tenant."""
        tenant = await workers.run(
            registry.apply,
            create_tenant,
            body.name,
            idempotency=idempotency(request, idempotency_key),
        )
        return _tenant_body(tenant)

    @routes.get("/tenants")
    async def list_tenants(limit: Limit = 100, after: After = "") -> TenantPage:
        """List tenants by name, a page at a time."""
        names = sorted(name for name in registry.catalog.tenants if name > after)
        page = [registry.catalog.tenants[name] for name in names[:limit]]
        following = page[-1].name if len(names) > limit else None
        owned = Counter(owner for owner, _ in registry.catalog.adapters)
        data = [_tenant_body(tenant, owned[tenant.name]) for tenant in page]
        return TenantPage(data=data, next=following)

    @routes.get("/tenants/{tenant}")
    async def show(tenant: str) -> TenantBody:
        """Show a tenant."""
        record = registry.catalog.tenants.get(tenant)
        if record is None:
            raise no_tenant(tenant)
        return _tenant_body(record)

    @routes.put("/tenants/{tenant}/quota")
    async def put_quota(tenant: str, body: QuotaBody) -> TenantBody:
        """Set the whole quota of a tenant. What is left out is without limit."""
        quota = Quota(**body.model_dump())
        return _tenant_body(await workers.run(registry.apply, set_quota, tenant, quota))

    @routes.put("/tenants/{tenant}/suspension")
    async def suspend(tenant: str, body: SuspensionAsked | None = None) -> TenantBody:
        """Refuse a tenant's requests, and all for its adapters (503 `suspended`).

        Its keys stay, and running answers finish. Its lists can still be read.
        """
        reason = body.reason if body else ""
        return _tenant_body(await workers.run(registry.apply, suspend_tenant, tenant, reason))

    @routes.delete("/tenants/{tenant}/suspension")
    async def resume(tenant: str) -> TenantBody:
        """Answer a tenant's requests again."""
        return _tenant_body(await workers.run(registry.apply, resume_tenant, tenant))

    @routes.delete("/tenants/{tenant}", status_code=204)
    async def delete(tenant: str) -> None:
        """Forget a tenant that has no adapters, and revoke its keys."""
        await workers.run(registry.apply, delete_tenant, tenant)

    @routes.post("/keys", status_code=201)
    async def make_key(
        request: Request,
        response: Response,
        body: NewKey,
        idempotency_key: IdempotencyHeader = None,
    ) -> CreatedKey:
        """Create a key. No other answer shows it."""
        key, record = await workers.run(
            keys.issue,
            body.tenant,
            list[str](body.scopes),
            label=body.label,
            expires_at=body.expires_at,
            idempotency=idempotency(request, idempotency_key),
        )
        response.headers["cache-control"] = "no-store"
        return CreatedKey(**KeyBody.of(record).model_dump(), key=key)

    @routes.post("/keys/{key_id}/rotate", status_code=201)
    async def rotate(
        request: Request,
        response: Response,
        key_id: str,
        body: KeyRotation | None = None,
        idempotency_key: IdempotencyHeader = None,
    ) -> RotatedKey:
        """Replace a key by a new one, which only this answer shows; both work for an overlap.

        The new key has the tenant, scopes and label of the old one.
        """
        asked, key = body or KeyRotation(), new_key()
        rotated = await workers.run(
            registry.apply,
            rotate_key,
            key_id,
            key,
            timedelta(seconds=asked.overlap_seconds),
            keys.policy,
            expires_at=asked.expires_at,
            idempotency=idempotency(request, idempotency_key),
        )
        response.headers["cache-control"] = "no-store"
        return RotatedKey(
            **KeyBody.of(rotated.new).model_dump(),
            key=key,
            replaces=key_id,
            replaced_until=rotated.old.expires_at,
        )

    @routes.get("/keys")
    async def list_keys(
        tenant: str | None = None, limit: Limit = 100, after: After = ""
    ) -> KeyPage:
        """List keys, a page at a time."""
        found = await workers.run(_read, tenant)
        ids = [key.id for key in found]
        if after and after not in ids:
            raise unknown_cursor()
        start = ids.index(after) + 1 if after else 0
        page = found[start : start + limit]
        following = page[-1].id if len(found) > start + limit else None
        return KeyPage(data=[KeyBody.of(key) for key in page], next=following)

    @routes.get("/whoami")
    async def say_who_asks(request: Request) -> CallerBody:
        """Show whose key this is and what it may do. Wants the scope `adapters` or `admin`."""
        caller: Caller = request.state.caller
        return CallerBody(tenant=caller.tenant, scopes=sorted(caller.scopes), key_id=caller.key_id)

    @routes.delete("/keys/{key_id}", status_code=204)
    async def revoke(key_id: str) -> None:
        """Revoke a key: here at once, on other servers of the same database within a second."""
        await workers.run(registry.apply, revoke_key, key_id)

    def _read(tenant: str | None) -> list[KeyRecord]:
        keys.save_last_used()
        with registry.session() as session:
            return read_keys(session, tenant)

    def _tenant_body(tenant: TenantRecord, num_adapters: int | None = None) -> TenantBody:
        if num_adapters is None:
            num_adapters = sum(owner == tenant.name for owner, _ in registry.catalog.adapters)
        return TenantBody(
            name=tenant.name,
            num_adapters=num_adapters,
            quota=QuotaBody.model_validate(tenant.quota),
            suspended=suspension_body(tenant.suspension),
            created_at=tenant.created_at,
        )

    return routes
