"""The audit trail: who changed what, when."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query

from adapters_registry.records import Registry
from server.admin.bodies import AuditBody, AuditPage


def router(registry: Registry) -> APIRouter:
    """The audit route."""
    routes = APIRouter(tags=["admin"])

    @routes.get("/audit")
    async def list_changes(
        tenant: str | None = None,
        subject: Annotated[str | None, Query(examples=["default/smart-home@live"])] = None,
        action: Annotated[str | None, Query(examples=["alias.point"])] = None,
        before: Annotated[int | None, Query(description="`next` of the page before.")] = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> AuditPage:
        """List changes, newest first, a page at a time."""
        entries = await asyncio.to_thread(
            registry.audit,
            tenant=tenant,
            subject=subject,
            action=action,
            before_id=before,
            limit=limit + 1,
        )
        page = entries[:limit]
        return AuditPage(
            data=[AuditBody.of(entry) for entry in page],
            next=page[-1].id if len(entries) > limit else None,
        )

    return routes
