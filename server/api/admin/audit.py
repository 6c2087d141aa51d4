"""The audit trail: who changed what, when."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query, Request

from adapters_registry.records.audit import KEY_ACTOR
from adapters_registry.records.tables import AuditEntry
from adapters_registry.registry import Registry
from server.api.admin.bodies import AuditBody, AuditPage
from server.api.routes import Routes
from server.auth import Caller
from server.workers import Workers

MAX_ID = (1 << 63) - 1


def router(registry: Registry, workers: Workers) -> Routes:
    """Return the route of the audit trail."""
    routes = Routes(tags=["admin"])

    @routes.get("/audit")
    async def list_changes(
        request: Request,
        tenant: str | None = None,
        subject: Annotated[str | None, Query(examples=["default/smart-home@live"])] = None,
        action: Annotated[str | None, Query(examples=["alias.point"])] = None,
        before: Annotated[
            int | None, Query(description="The `next` of the page before.", le=MAX_ID)
        ] = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> AuditPage:
        """List changes, newest first, a page at a time.

        With the scope `adapters`, only those of the caller's tenant.
        """
        return await workers.run(
            page_of_audit,
            registry,
            request.state.caller,
            tenant=tenant,
            subject=subject,
            action=action,
            before=before,
            limit=limit,
        )

    return routes


def page_of_audit(
    registry: Registry,
    caller: Caller,
    *,
    tenant: str | None,
    subject: str | None,
    action: str | None,
    before: int | None,
    limit: int,
) -> AuditPage:
    """Return the newest changes below the id `before` that a caller may see, at most `limit`.

    Raises:
        NotFound: `tenant` is one that the caller does not manage.
    """
    if tenant is not None:
        caller.require_tenant(tenant)
    entries = registry.audit(
        tenant=tenant,
        tenant_id=None if caller.is_admin else caller.tenant_id,
        subject=subject,
        action=action,
        before_id=before,
        limit=limit + 1,
    )
    page = entries[:limit]
    return AuditPage(
        data=[_body(registry, entry) for entry in page],
        next=page[-1].id if len(entries) > limit else None,
    )


def _body(registry: Registry, entry: AuditEntry) -> AuditBody:
    key = registry.catalog.keys.get(entry.actor.removeprefix(KEY_ACTOR))
    body = AuditBody.model_validate(entry)
    return body.model_copy(update={"actor_label": key.label}) if key else body
