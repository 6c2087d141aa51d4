"""Adapters and their versions: register, list, show, retire, delete."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Query, Request, Response

from adapters_registry.records.access.sharing import share_adapter
from adapters_registry.records.access.suspension import resume_adapter, suspend_adapter
from adapters_registry.records.catalog import AdapterRecord, VersionRecord
from adapters_registry.records.retirement import delete_adapter, retire_version
from adapters_registry.records.tables import VersionState
from adapters_registry.registry import Registry
from server.api.admin.bodies import (
    AdapterBody,
    AdapterDetail,
    AdapterPage,
    Sharing,
    SuspensionAsked,
    VersionBody,
)
from server.api.admin.idempotency import IdempotencyHeader, idempotency
from server.api.admin.intakes import Intakes
from server.api.admin.paging import Sorting, find_adapters, page_of
from server.api.admin.registration import REQUEST_BODY, RegistrationBody
from server.api.composition.compositions import Compositions
from server.api.routes import Routes
from server.auth import Caller
from server.errors import rejected
from server.gate.gate import CHECKABLE, Gate
from server.workers import Workers

MAX_NUMBER = (1 << 31) - 1

Force = Annotated[bool, Query(description="Even if aliases point to it: they let go of it.")]


async def served_form(
    gate: Gate,
    compositions: Compositions,
    asked: RegistrationBody,
    version: VersionRecord,
    *,
    is_new: bool,
) -> tuple[VersionRecord, bool]:
    """Return the version that serves a registration, and whether it is new.

    It is the registered one, or its best fit, if that is asked for and the rank is too large.

    Raises:
        OverQuota, RegistryError: the fit cannot be made now.
    """
    if not asked.fit_rank:
        return version, is_new
    if version.state in CHECKABLE:
        gate.start(version)
        version = await gate.verdict(version)
    if version.state is VersionState.REJECTED or not compositions.is_too_large(version):
        return version, is_new
    return await compositions.fit(version, promote=asked.promote)


async def answer_registration(
    gate: Gate, version: VersionRecord, response: Response, *, is_new: bool, wait: bool
) -> VersionBody:
    """Have a registered version checked, and return its body. Sets the answer's status.

    Raises:
        Rejected: the gate refuses it, and the caller waits for that.
    """
    if version.state in CHECKABLE:
        gate.start(version)  # also of a repeated registration, whose check may have been cut off
    if wait:
        version = await gate.verdict(version)
    is_refused_here = wait and version.state is VersionState.INCOMPATIBLE
    if version.state is VersionState.REJECTED or is_refused_here:
        raise rejected(version.reasons)
    if version.state is VersionState.READY:
        response.status_code = 201 if is_new else 200
    body = VersionBody.of(version)
    response.headers["location"] = body.location
    return body


def router(
    registry: Registry,
    gate: Gate,
    intakes: Intakes,
    compositions: Compositions,
    workers: Workers,
) -> Routes:
    """Return the routes of adapters and versions."""
    routes = Routes(prefix="/adapters", tags=["admin"])

    @routes.post(
        "",
        status_code=202,
        openapi_extra=REQUEST_BODY,
        response_model=VersionBody,
        responses={
            200: {"description": "This content is a version already.", "model": VersionBody},
            201: {"description": "Ready (with `wait=true`).", "model": VersionBody},
            408: {"description": "The upload came too slowly, or took too long."},
            422: {"description": "Rejected (with `wait=true`), with every reason."},
            429: {"description": "The tenant may have no more adapters, bytes or uploads."},
            503: {"description": "The hub or the store that has the files doesn't answer."},
            507: {"description": "The disk, or the budget for it, is full."},
        },
    )
    async def register_adapter(
        request: Request,
        response: Response,
        wait: Annotated[bool, Query(description="Answer once the version was checked.")] = False,
        idempotency_key: IdempotencyHeader = None,
    ) -> VersionBody:
        """Register the adapter's next version, from a source (JSON) or an upload (multipart).

        Answers 202 at once; with `wait=true` 201 when it is ready, or 422 with every reason.
        Content that is a version already is not doubled: 200, and that version. If it is
        incompatible with this server's base, it is checked again. With `fit_rank` an adapter above
        the server's rank is kept, and the answer is about its best fit, once that is made.
        """
        version, is_new = await intakes.take_in(request, idempotency(request, idempotency_key))
        asked: RegistrationBody = request.state.registration
        version, is_new = await served_form(gate, compositions, asked, version, is_new=is_new)
        return await answer_registration(gate, version, response, is_new=is_new, wait=wait)

    @routes.get("")
    async def list_adapters(
        request: Request,
        tenant: str | None = None,
        search: Annotated[str | None, Query(description="A part of tenant/name.")] = None,
        state: Annotated[
            VersionState | None, Query(description="Adapters with a version in this state.")
        ] = None,
        sort: Annotated[
            Sorting, Query(description="A `-` in front means descending.")
        ] = Sorting.NAME,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        after: Annotated[str, Query(description="The `next` of the page before.")] = "",
    ) -> AdapterPage:
        """List adapters, a page at a time. With the scope `adapters`, only the caller's own."""
        caller: Caller = request.state.caller
        adapters = await workers.run(
            find_adapters, registry, caller, tenant=tenant, search=search, state=state
        )
        page, cursor = page_of(adapters, sort, limit, after)
        newest = await _newest(page)
        data = [AdapterBody.of(adapter, newest.get(adapter.id)) for adapter in page]
        return AdapterPage(data=data, next=cursor)

    @routes.get("/{tenant}/{name}")
    async def show_adapter(
        tenant: str,
        name: str,
        before: Annotated[
            int | None, Query(ge=1, le=MAX_NUMBER, description="The `next` of the page before.")
        ] = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> AdapterDetail:
        """Show an adapter with its versions in any state, a page at a time."""
        adapter = registry.get_adapter(tenant, name)
        versions = await workers.run(
            registry.read_history, tenant, name, before=before, limit=limit + 1
        )
        newest = await _newest([adapter])
        return AdapterDetail.of_page(adapter, newest.get(adapter.id), versions, limit)

    @routes.put("/{tenant}/{name}/sharing")
    async def share(tenant: str, name: str, body: Sharing) -> AdapterBody:
        """Say which other tenants may use the adapter, from the next request on."""
        await _apply(share_adapter, tenant, name, body.shared_with, body.public)
        return await _body(tenant, name)

    @routes.put("/{tenant}/{name}/suspension")
    async def suspend(
        request: Request, tenant: str, name: str, body: SuspensionAsked | None = None
    ) -> AdapterBody:
        """Refuse requests for the adapter (503 `suspended`) until it is resumed.

        Running answers finish. If an admin does it, only an admin can resume it.
        """
        reason, by_admin = body.reason if body else "", request.state.caller.is_admin
        await _apply(suspend_adapter, tenant, name, reason, by_admin=by_admin)
        return await _body(tenant, name)

    @routes.delete("/{tenant}/{name}/suspension")
    async def resume(request: Request, tenant: str, name: str) -> AdapterBody:
        """Answer requests for the adapter again."""
        await _apply(resume_adapter, tenant, name, by_admin=request.state.caller.is_admin)
        return await _body(tenant, name)

    @routes.delete("/{tenant}/{name}", status_code=204)
    async def delete(tenant: str, name: str, force: Force = False) -> None:
        """Retire every version and forget the adapter. Its version numbers are not used again."""
        await _apply(delete_adapter, tenant, name, force=force)

    @routes.get("/{tenant}/{name}/versions/{number}")
    async def show_version(tenant: str, name: str, number: int) -> VersionBody:
        """Show one version. A rejected one has every reason."""
        return VersionBody.of(await workers.run(registry.get_version, tenant, name, number))

    @routes.delete("/{tenant}/{name}/versions/{number}", status_code=204)
    async def retire(tenant: str, name: str, number: int, force: Force = False) -> None:
        """Take a version out of service for good. Answers that have begun finish on it."""
        await _apply(retire_version, tenant, name, number, force=force)

    async def _body(tenant: str, name: str) -> AdapterBody:
        adapter = registry.get_adapter(tenant, name)
        newest = await _newest([adapter])
        return AdapterBody.of(adapter, newest.get(adapter.id))

    async def _newest(adapters: list[AdapterRecord]) -> dict[str, VersionRecord]:
        return await workers.run(registry.newest_versions, adapters)

    async def _apply(operation: Any, *args: Any, **kwargs: Any) -> None:
        await workers.run(registry.apply, operation, *args, **kwargs)

    return routes
