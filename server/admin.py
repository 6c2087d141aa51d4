"""`/admin`: register adapters, list and show them."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import FormData, UploadFile

from adapters_registry.content import ADAPTER_FILES
from adapters_registry.errors import SourceRefused
from adapters_registry.models import VersionState
from adapters_registry.names import DEFAULT_TENANT
from adapters_registry.records import AdapterRecord, Registry, VersionRecord
from adapters_registry.sources import missing_file, stage_local_path
from server.errors import InvalidRequest, rejected

_MIB = 1 << 20

Stage = Callable[[Path], None]


class Registration(BaseModel):
    """A request to register the next version of an adapter."""

    model_config = ConfigDict(extra="forbid")

    name: str
    tenant: str = DEFAULT_TENANT
    source: str = ""
    promote: bool = False
    metadata: dict[str, Any] = Field(default_factory=dict)


def router(
    registry: Registry, base_name: str, local_roots: tuple[Path, ...], max_adapter_mib: int
) -> APIRouter:
    """The admin routes."""
    routes = APIRouter(prefix="/admin", tags=["admin"])
    max_bytes = max_adapter_mib * _MIB
    checks: dict[int, asyncio.Task[VersionRecord]] = {}

    @routes.post("/adapters", status_code=202, openapi_extra=_REGISTRATION_BODY)
    async def register_adapter(
        request: Request, wait: Annotated[bool, Query(description="Answer when checked.")] = False
    ) -> JSONResponse:
        """Register the adapter's next version, from a server path (JSON) or an upload (multipart).

        Answers 202 at once; with `wait=true` 201 when it is ready, or 422 with every reason.
        Content that is a version already is not doubled: 200, and that version.
        """
        if request.headers.get("content-type", "").startswith("multipart/form-data"):
            async with request.form(max_files=len(ADAPTER_FILES) + 8) as form:
                registration = _parse_form(form)
                version, is_new = await take_in(registration, _stage_upload(form, max_bytes))
        else:
            registration = _parse(_parse_json(await request.body()))
            version, is_new = await take_in(registration, stage_path(registration.source))
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

    def stage_path(source: str) -> Stage:
        if not source:
            raise InvalidRequest("give a source, or upload the files", param="source")
        return lambda staged: stage_local_path(source, local_roots, staged, max_bytes)

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


def _parse_form(form: FormData) -> Registration:
    values: dict[str, Any] = {k: v for k, v in form.multi_items() if isinstance(v, str)}
    if "metadata" in values:
        values["metadata"] = _parse_json(values["metadata"])
    return _parse(values)


def _parse_json(text: str | bytes) -> Any:
    """Decode JSON that can be stored and sent again: no NaN, no half characters."""

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is no JSON")

    try:
        value = json.loads(text, parse_constant=refuse)
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"the body is no JSON: {error}") from error
    return value


def _parse(values: Any) -> Registration:
    try:
        return Registration.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        param = ".".join(str(part) for part in first["loc"]) or None
        raise InvalidRequest(f"{param or 'body'}: {first['msg']}", param=param) from error


def _stage_upload(form: FormData, max_bytes: int) -> Stage:
    """Copy the uploaded parts, which the framework has spooled to disk, to the staging folder."""
    uploads = {
        part.filename: part for part in form.getlist("files") if isinstance(part, UploadFile)
    }

    def stage(staged: Path) -> None:
        if sum(upload.size or 0 for upload in uploads.values()) > max_bytes:
            raise SourceRefused(f"the upload is over {max_bytes // _MIB} MiB")
        for name in ADAPTER_FILES:
            if name not in uploads:
                raise SourceRefused(missing_file(name))
            with (staged / name).open("wb") as target:
                shutil.copyfileobj(uploads[name].file, target)

    return stage


_REGISTRATION_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": Registration.model_json_schema(),
                "example": {"name": "smart-home", "source": "/adapters/smart-home"},
            },
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["name", "files"],
                    "properties": {
                        "name": {"type": "string"},
                        "tenant": {"type": "string"},
                        "promote": {"type": "boolean"},
                        "metadata": {"type": "string", "description": "A JSON object."},
                        "files": {
                            "type": "array",
                            "items": {"type": "string", "format": "binary"},
                            "description": " and ".join(ADAPTER_FILES),
                        },
                    },
                }
            },
        },
    }
}
