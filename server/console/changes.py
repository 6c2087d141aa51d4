"""What can be done to an adapter on its page. Each change is that of the HTTP route of the name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import Depends, Request
from fastapi.responses import Response
from starlette.datastructures import FormData

from adapters_registry.names import LIVE
from adapters_registry.records.access.sharing import share_adapter
from adapters_registry.records.access.suspension import resume_adapter, suspend_adapter
from adapters_registry.records.aliases import point_alias, remove_alias, roll_back
from adapters_registry.records.catalog import Target
from adapters_registry.records.retirement import pin_version, retire_version
from server.api.admin import hide_foreign
from server.api.admin.bodies import SuspensionAsked
from server.api.admin.residency import prefetch_version, prepare_pin
from server.api.routes import Routes
from server.auth import require_admin
from server.console.adapter import AdapterPages
from server.console.pages.forms import body_of
from server.console.pages.rollout import promoted_in_words
from server.console.parts import Parts, caller_of
from server.errors import InvalidRequest


def router(parts: Parts) -> Routes:
    """Return the routes that change an adapter."""
    routes = Routes(prefix="/adapters/{tenant}/{name}", dependencies=[Depends(hide_foreign)])
    services, pages = parts.services, AdapterPages(parts)

    async def apply(operation: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        await parts.workers.run(services.registry.apply, operation, *args, **kwargs)
        services.leases.follow(services.registry.catalog)

    @routes.post("/aliases")
    async def point(request: Request, tenant: str, name: str) -> Response:
        """Promote a version, or split an alias between a version and another one.

        With `warm` the alias moves when servers have loaded the version; the answer comes then.
        """
        form = await request.form()
        alias, version = _text(form, "alias") or LIVE, _number(form, "version")
        weight = _number(form, "weight") if form.get("weight") else 100
        targets = [Target(version, weight)] if weight else []
        if weight < 100:
            targets.append(Target(_number(form, "other"), 100 - weight))
        seen = _number(form, "revision") if form.get("revision") else None
        if form.get("warm") == "on":
            promoted = await services.rollouts.warm.promote(
                tenant,
                name,
                alias,
                targets,
                wait_seconds=services.settings.warm_seconds,
                if_revision=seen,
            )
            done = promoted_in_words(alias, promoted)
            return await pages.show(request, tenant, name, done)
        await apply(point_alias, tenant, name, alias, targets, if_revision=seen)
        share = f"{weight} % of the requests" if weight < 100 else "every request"
        done = f"The alias {alias} was changed: @{version} gets {share} from now on."
        return await pages.show(request, tenant, name, done)

    @routes.post("/aliases/{alias}/remove")
    async def remove(request: Request, tenant: str, name: str, alias: str) -> Response:
        """Remove an alias."""
        await apply(remove_alias, tenant, name, alias)
        return await pages.show(request, tenant, name, f"The alias {alias} was removed.")

    @routes.post("/rollback")
    async def rollback(request: Request, tenant: str, name: str) -> Response:
        """Point `live` back to the version before."""
        await apply(roll_back, tenant, name, LIVE)
        return await pages.show(request, tenant, name, "live points to its previous target again.")

    @routes.post("/sharing")
    async def share(request: Request, tenant: str, name: str) -> Response:
        """Say which other tenants may use the adapter."""
        form = await request.form()
        others = _text(form, "shared_with").replace(",", " ").split()
        await apply(share_adapter, tenant, name, others, form.get("public") == "on")
        return await pages.show(request, tenant, name, "The sharing was changed.")

    @routes.post("/suspend")
    async def suspend(request: Request, tenant: str, name: str) -> Response:
        """Refuse requests for the adapter until it is resumed."""
        reason = body_of(SuspensionAsked, dict(await request.form())).reason
        await apply(suspend_adapter, tenant, name, reason, by_admin=caller_of(request).is_admin)
        done = "The adapter is suspended: requests for it are refused from now on."
        return await pages.show(request, tenant, name, done)

    @routes.post("/resume")
    async def resume(request: Request, tenant: str, name: str) -> Response:
        """Answer requests for the adapter again."""
        await apply(resume_adapter, tenant, name, by_admin=caller_of(request).is_admin)
        return await pages.show(request, tenant, name, "The adapter is in service again.")

    @routes.post("/versions/{number}/retire")
    async def retire(request: Request, tenant: str, name: str, number: int) -> Response:
        """Take a version out of service for good."""
        form = await request.form()
        await apply(retire_version, tenant, name, number, force=form.get("force") == "on")
        return await pages.show(request, tenant, name, f"@{number} was retired.")

    @routes.post("/versions/{number}/pin", dependencies=[Depends(require_admin)])
    async def pin(request: Request, tenant: str, name: str, number: int) -> Response:
        """Keep a version in a slot."""
        await prepare_pin(services.registry, services.leases, parts.workers, tenant, name, number)
        await apply(pin_version, tenant, name, number, True)
        return await pages.show(request, tenant, name, f"@{number} keeps a slot from now on.")

    @routes.post("/versions/{number}/unpin", dependencies=[Depends(require_admin)])
    async def unpin(request: Request, tenant: str, name: str, number: int) -> Response:
        """Let a version's slot go to others again."""
        await apply(pin_version, tenant, name, number, False)
        return await pages.show(request, tenant, name, f"@{number} no longer keeps a slot.")

    @routes.post("/versions/{number}/prefetch", dependencies=[Depends(require_admin)])
    async def prefetch(request: Request, tenant: str, name: str, number: int) -> Response:
        """Load a version into host memory before a request asks for it."""
        await prefetch_version(
            services.registry, services.leases, parts.workers, tenant, name, number
        )
        return await pages.show(request, tenant, name, f"@{number} is being loaded.")

    return routes


def _text(form: FormData, field: str) -> str:
    value = form.get(field, "")
    return value.strip() if isinstance(value, str) else ""


def _number(form: FormData, field: str) -> int:
    value = _text(form, field)
    if not (value.isascii() and value.isdecimal() and len(value) < 10):
        raise InvalidRequest(f"{field} must be a whole number", param=field)
    return int(value)
