"""API keys, for admins: who has which, a new one (shown once), and revoking them."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from fastapi import Depends, Query, Request
from fastapi.responses import Response

from adapters_registry.records.access.key_life import rotate_key
from adapters_registry.records.keys import (
    SCOPES,
    KeyRecord,
    new_key,
    read_keys,
    revoke_key,
)
from adapters_registry.records.tables import now
from server.api.admin.paging import unknown_cursor
from server.api.admin.tenants import KeyRotation, NewKey
from server.api.routes import Routes
from server.auth import require_admin
from server.console.pages.forms import body_of
from server.console.parts import Parts

PAGE_SIZE = 50

Tenant = Annotated[str, Query(max_length=256)]


def router(parts: Parts) -> Routes:
    """Return the routes that list, create and revoke keys."""
    routes = Routes(prefix="/keys", dependencies=[Depends(require_admin)])
    services = parts.services
    registry, keys = services.registry, services.keys

    @routes.get("")
    async def list_keys(
        request: Request, tenant: Tenant = "", after: Annotated[str, Query(max_length=64)] = ""
    ) -> Response:
        """Show keys, the newest first, a page at a time."""
        return await _page(request, tenant.strip(), after)

    @routes.post("")
    async def create(request: Request) -> Response:
        """Create a key, and show it for the only time."""
        form = await request.form()
        expires_on = str(form.get("expires_on", ""))
        fields = {
            "tenant": form.get("tenant", ""),
            "scopes": form.getlist("scopes"),
            "label": form.get("label", ""),
            "expires_at": f"{expires_on}T00:00:00Z" if expires_on else "",
        }
        body = body_of(NewKey, fields)
        issued = await parts.workers.run(
            keys.issue,
            body.tenant,
            list[str](body.scopes),
            label=body.label,
            expires_at=body.expires_at,
        )
        return await _page(request, str(form.get("shown", "")), created=issued.key)

    @routes.post("/{key_id}/rotate")
    async def rotate(request: Request, key_id: str) -> Response:
        """Replace a key, and show the new one for the only time."""
        form, key = await request.form(), new_key()
        body = body_of(KeyRotation, {"overlap_seconds": form.get("overlap_seconds", "")})
        overlap = timedelta(seconds=body.overlap_seconds)
        await parts.workers.run(registry.apply, rotate_key, key_id, key, overlap, keys.policy)
        return await _page(request, str(form.get("shown", "")), created=key)

    @routes.post("/{key_id}/revoke")
    async def revoke(request: Request, key_id: str) -> Response:
        """Revoke a key."""
        form = await request.form()
        await parts.workers.run(registry.apply, revoke_key, key_id)
        done = f"The key {key_id} is revoked: requests with it are refused from now on."
        return await _page(request, str(form.get("shown", "")), done=done)

    async def _page(
        request: Request, tenant: str, after: str = "", *, created: str = "", done: str = ""
    ) -> Response:
        found = await parts.workers.run(_read, tenant)
        ids = [key.id for key in found]
        if after and after not in ids:
            raise unknown_cursor()
        first = ids.index(after) + 1 if after else 0
        page = found[first : first + PAGE_SIZE]
        return parts.renderer.page(
            request,
            "keys.html",
            keys=page,
            num_found=len(found),
            next=page[-1].id if len(found) > first + PAGE_SIZE else None,
            is_first=not after,
            tenant=tenant,
            scopes=SCOPES,
            longest_days=services.settings.max_key_days,
            at=now(),
            created=created,
            done=done,
        )

    def _read(tenant: str) -> list[KeyRecord]:
        keys.save_last_used()
        with registry.session() as session:
            return read_keys(session, tenant or None)[::-1]

    return routes
