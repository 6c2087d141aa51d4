"""The audit trail with filters: who changed what, when."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query, Request
from fastapi.responses import Response
from pydantic import BeforeValidator, Field

from server.api.admin.audit import MAX_ID, page_of_audit
from server.api.routes import Routes
from server.api.words import change_in_words
from server.console.parts import Parts, caller_of

PAGE_SIZE = 50

Filter = Annotated[str, Query(max_length=256)]
Before = Annotated[
    Annotated[int, Field(ge=0, le=MAX_ID)] | None, BeforeValidator(lambda value: value or None)
]


def router(parts: Parts) -> Routes:
    """Return the route of the page."""
    routes = Routes()
    registry = parts.services.registry

    @routes.get("/audit")
    async def show(
        request: Request,
        tenant: Filter = "",
        subject: Filter = "",
        action: Filter = "",
        before: Before = None,
    ) -> Response:
        """Show changes, the newest first: a tenant's own, and to an admin all."""
        filters = {"tenant": tenant.strip(), "subject": subject.strip(), "action": action.strip()}
        page = await parts.workers.run(
            page_of_audit,
            registry,
            caller_of(request),
            before=before,
            limit=PAGE_SIZE,
            **{name: value or None for name, value in filters.items()},
        )
        return parts.renderer.page(
            request,
            "audit.html",
            changes=[(entry, change_in_words(entry.before, entry.after)) for entry in page.data],
            filters=filters,
            is_first=before is None,
            next=page.next,
        )

    return routes
