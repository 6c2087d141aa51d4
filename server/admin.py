"""`/admin`: register adapters, list and show them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse

from adapters_registry.models import VersionState
from adapters_registry.records import AdapterRecord, Registry, VersionRecord
from server.errors import InvalidRequest, rejected
from server.registration import REQUEST_BODY, Registration, Stage, read_registration

_MIB = 1 << 20


def router(
    registry: Registry, base_name: str, local_roots: tuple[Path, ...], max_adapter_mib: int
) -> APIRouter:
    """The admin routes."""
    routes = APIRouter(prefix="/admin", tags=["admin"])
    max_bytes = max_adapter_mib * _MIB
    checks: dict[int, asyncio.Task[VersionRecord]] = {}

    @routes.post("/adapters", status_code=202, openapi_extra=REQUEST_BODY)
    async def register_adapter(
        request: Request, wait: Annotated[bool, Query(description="Answer when checked.")] = False
    ) -> JSONResponse:
        """Register the adapter's next version, from a server path (JSON) or an upload (multipart).

        Answers 202 at once; with `wait=true` 201 when it is ready, or 422 with every reason.
        Content that is a version already is not doubled: 200, and that version.
        """
        async with read_registration(request, local_roots, max_bytes) as (registration, stage):
            version, is_new = await take_in(registration, stage)
        if is_new:
            start_check(version)
        if wait and version.engine_id in checks:
            version = await asyncio.shield(checks[version.engine_id])
        if version.state is VersionState.REJECTED:
            raise rejected(version.reasons)
        ready = version.state is VersionState.READY
        return _version_response(version, (201 if is_new else 200) if ready else 202)

    def start_check(version: VersionRecord) -> None:
        check = asyncio.create_task(asyncio.to_thread(registry.check, version))
        checks[version.engine_id] = check
        check.add_done_callback(lambda _: checks.pop(version.engine_id))

    async def take_in(registration: Registration, stage: Stage) -> tuple[VersionRecord, bool]:
        if registration.name == base_name:
            raise InvalidRequest(f"{base_name!r} is the base's name; choose another", param="name")
        return await asyncio.to_thread(
            registry.register,
            registration.tenant,
            registration.name,
            registration.source or "upload",
            stage,
            promote=registration.promote,
            metadata=registration.metadata,
        )

    @routes.get("/adapters")
    async def list_adapters(
        tenant: str | None = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        after: Annotated[str, Query(description="`next` of the page before.")] = "",
    ) -> dict[str, Any]:
        """List adapters by name, a page at a time."""
        adapters = [
            adapter
            for adapter in registry.catalog.adapters.values()
            if _id(adapter) > after and tenant in (None, adapter.tenant)
        ]
        adapters.sort(key=_id)
        page = adapters[:limit]
        return {
            "data": [_adapter_body(adapter) for adapter in page],
            "next": _id(page[-1]) if len(adapters) > limit else None,
        }

    @routes.get("/adapters/{tenant}/{name}")
    async def show_adapter(tenant: str, name: str) -> dict[str, Any]:
        """Show an adapter with all its versions."""
        adapter = registry.get_adapter(tenant, name)
        versions = [version_body(version) for version in adapter.versions.values()]
        return {**_adapter_body(adapter), "versions": versions}

    @routes.get("/adapters/{tenant}/{name}/versions/{number}")
    async def show_version(tenant: str, name: str, number: int) -> dict[str, Any]:
        """Show one version, rejected ones with every reason."""
        return version_body(registry.get_version(tenant, name, number))

    return routes


def version_body(version: VersionRecord) -> dict[str, Any]:
    """A version as JSON."""
    return {
        "tenant": version.tenant,
        "name": version.name,
        "version": version.number,
        "model": version.public_name,
        "digest": version.digest,
        "state": version.state.value,
        "rank": version.rank,
        "size_bytes": version.size_bytes,
        "reasons": version.reasons,
        "source": version.source,
        "metadata": version.metadata,
        "created_at": version.created_at.isoformat(),
        "location": _location(version),
    }


def _adapter_body(adapter: AdapterRecord) -> dict[str, Any]:
    live = adapter.live
    return {
        "tenant": adapter.tenant,
        "name": adapter.name,
        "live": live.number if live else None,
        "rank": live.rank if live else None,
        "size_bytes": live.size_bytes if live else None,
        "num_versions": len(adapter.versions),
        "aliases": adapter.aliases,
        "created_at": adapter.created_at.isoformat(),
    }


def _version_response(version: VersionRecord, status: int) -> JSONResponse:
    headers = {"location": _location(version)}
    return JSONResponse(version_body(version), status_code=status, headers=headers)


def _location(version: VersionRecord) -> str:
    return f"/admin/adapters/{version.adapter_id}/versions/{version.number}"


def _id(adapter: AdapterRecord) -> str:
    return f"{adapter.tenant}/{adapter.name}"
