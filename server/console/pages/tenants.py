"""Tenants and their quotas, for admins."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

from fastapi import Depends, Query, Request
from fastapi.responses import Response

from adapters_registry.records.tenants import (
    Quota,
    create_tenant,
    delete_tenant,
    no_tenant,
    resume_tenant,
    set_policy,
    set_quota,
    suspend_tenant,
)
from adapters_registry.trust.policy import SignatureRule
from server.api.admin.bodies import SuspensionAsked
from server.api.admin.policies import PolicyBody
from server.api.admin.tenants import NewTenant, QuotaBody
from server.api.routes import Routes
from server.auth import require_admin
from server.console.navigation import ROOT
from server.console.pages.forms import body_of
from server.console.parts import Parts
from server.console.rendering import HEADERS
from server.tenancy.service_tiers import ON_DEMAND

PAGE_SIZE = 50


def router(parts: Parts) -> Routes:
    """Return the routes that list, show and change tenants."""
    routes = Routes(prefix="/tenants", dependencies=[Depends(require_admin)])
    registry, render = parts.services.registry, parts.renderer.page

    @routes.get("")
    async def list_tenants(
        request: Request,
        search: Annotated[str, Query(max_length=256)] = "",
        after: Annotated[str, Query(max_length=256)] = "",
    ) -> Response:
        """Show tenants by name, a page at a time."""
        catalog = registry.catalog
        found = sorted(name for name in catalog.tenants if search.strip() in name)
        names = [name for name in found if name > after]
        page = names[:PAGE_SIZE]
        owned = Counter(owner for owner, _ in catalog.adapters)
        return render(
            request,
            "tenants.html",
            tenants=[(catalog.tenants[name], owned[name]) for name in page],
            num_found=len(found),
            search=search.strip(),
            is_first=not after,
            next=page[-1] if len(names) > PAGE_SIZE else None,
        )

    @routes.post("")
    async def create(request: Request) -> Response:
        """Create a tenant, and lead to its page."""
        form = await request.form()
        body = body_of(NewTenant, {"name": form.get("name", "")})
        tenant = await parts.workers.run(registry.apply, create_tenant, body.name)
        return _lead_to(f"/tenants/{tenant.name}")

    @routes.get("/{tenant}")
    async def show(request: Request, tenant: str) -> Response:
        """Show a tenant and the form of its quota."""
        return _page(request, tenant)

    @routes.post("/{tenant}/quota")
    async def put_quota(request: Request, tenant: str) -> Response:
        """Set the whole quota: an empty field is without limit."""
        form = await request.form()
        tiers = form.getlist("service_tiers")
        body = body_of(QuotaBody, {**form, "service_tiers": tiers})
        await parts.workers.run(registry.apply, set_quota, tenant, Quota(**body.model_dump()))
        return _page(request, tenant, "The quota is saved. It holds from the next request on.")

    @routes.post("/{tenant}/suspend")
    async def suspend(request: Request, tenant: str) -> Response:
        """Refuse a tenant's requests until it is resumed."""
        reason = body_of(SuspensionAsked, dict(await request.form())).reason
        await parts.workers.run(registry.apply, suspend_tenant, tenant, reason)
        return _page(request, tenant, "The tenant is suspended: its requests are refused now.")

    @routes.post("/{tenant}/resume")
    async def resume(request: Request, tenant: str) -> Response:
        """Answer a tenant's requests again."""
        await parts.workers.run(registry.apply, resume_tenant, tenant)
        return _page(request, tenant, "The tenant is in service again.")

    @routes.post("/{tenant}/policy")
    async def put_policy(request: Request, tenant: str) -> Response:
        """Set whether adapters must be signed, and which sources requests may name."""
        record, form = registry.catalog.tenants.get(tenant), await request.form()
        if record is None:
            raise no_tenant(tenant)
        sources = str(form.get("sources", "")).split()
        known = PolicyBody.of(record).model_dump(exclude={"signatures", "sources"})
        sent = {"signatures": form.get("signatures"), "sources": sources}
        body = body_of(PolicyBody, known | sent)
        await parts.workers.run(registry.apply, set_policy, tenant, body.to_policy())
        return _page(request, tenant, "The policy is saved. It holds from the next request on.")

    @routes.post("/{tenant}/delete")
    async def delete(tenant: str) -> Response:
        """Delete a tenant that has no adapters, and revoke its keys."""
        await parts.workers.run(registry.apply, delete_tenant, tenant)
        return _lead_to("/tenants")

    def _page(request: Request, name: str, done: str = "") -> Response:
        tenant = registry.catalog.tenants.get(name)
        if tenant is None:
            raise no_tenant(name)
        return render(
            request,
            "tenant.html",
            tenant=tenant,
            quota=QuotaBody.model_validate(tenant.quota).model_dump(),
            limits=LIMITS,
            tiers=ON_DEMAND.values(),
            policy=tenant.policy,
            rules=RULES,
            num_adapters=sum(owner == name for owner, _ in registry.catalog.adapters),
            done=done,
        )

    return routes


def _lead_to(path: str) -> Response:
    return Response(status_code=204, headers=HEADERS | {"hx-redirect": ROOT + path})


LIMITS = {
    "requests_per_minute": ("Requests per minute", "On each server."),
    "tokens_per_minute": ("Tokens per minute", "In and out, on each server."),
    "concurrent_requests": ("Requests at a time", "On each server."),
    "max_tokens": ("Longest answer, tokens", "All choices of a request share it."),
    "choices": ("Answers of one request", "Its n, times its prompts."),
    "adapters": ("Adapters", ""),
    "versions": ("Versions", "Those whose files are kept."),
    "adapter_bytes": ("Bytes of adapters", "Of the versions whose files are kept."),
    "registrations_per_minute": ("Registrations per minute", "On all servers together."),
    "compositions": ("Compositions", "That its requests name, kept at a time; 0 turns them off."),
    "weight": ("Weight", "Its share while tenants wait: twice the weight, twice the tokens."),
}
"""The fields of a quota in the form's order: what each is called, and a note."""
RULES = {
    SignatureRule.NONE: "are not looked at",
    SignatureRule.IF_PRESENT: "must fit where there is one",
    SignatureRule.REQUIRED: "are required",
}
"""What a tenant's rule says of signatures."""
