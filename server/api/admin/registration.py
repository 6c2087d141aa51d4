"""What registering takes in: a JSON or multipart body, and the files that come with it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import FormData

from adapters_registry.content.adapter_files import ADAPTER_FILES
from adapters_registry.registry import Registry
from adapters_registry.sources import Source, find_source
from server.api.admin.upload import receive_upload
from server.auth import Caller
from server.errors import Forbidden, InvalidRequest
from server.workers import Workers


class Registration(BaseModel):
    """What to register the next version of."""

    model_config = ConfigDict(extra="forbid")

    name: str
    tenant: str | None = Field(None, description="Default: the key's.")
    source: str = Field(
        "", description="A path on the server, hf://org/repo@revision or s3://bucket/prefix."
    )
    promote: bool = False
    metadata: dict[str, Any] = Field(default_factory=dict)
    allow_base_mismatch: bool = Field(
        False, description="The configuration may name another base; recorded in the metadata."
    )


@asynccontextmanager
async def read_registration(
    request: Request,
    registry: Registry,
    workers: Workers,
    local_roots: tuple[Path, ...],
    max_bytes: int,
) -> AsyncIterator[tuple[Registration, Source]]:
    """The registration of a request, and its source, which stages while the context is open.

    Raises:
        Forbidden, NotFound: the caller may not register from there, or for that tenant.
        InvalidRequest: the body can't be understood.
        RegistryError: the source can't be had, or there is no room for an upload.
    """
    caller: Caller = request.state.caller
    if request.headers.get("content-type", "").startswith("multipart/form-data"):
        async with receive_upload(request, registry, workers, max_bytes) as (form, upload):
            yield _for_caller(_parse_form(form), caller), upload
    else:
        registration = _for_caller(_parse(_parse_json(await request.body())), caller)
        if not registration.source:
            raise InvalidRequest("give a source, or upload the files", param="source")
        found = await workers.run(find_source, registration.source, local_roots, max_bytes)
        yield registration, found


def _for_caller(asked: Registration, caller: Caller) -> Registration:
    """The registration with its tenant, if it is the caller's to make."""
    tenant = caller.tenant if asked.tenant is None else asked.tenant
    caller.require_tenant(tenant)
    if asked.source and not caller.is_admin:
        # The server would read with its own rights what may be another tenant's.
        raise Forbidden("only admins register from a source: upload the files", param="source")
    return asked.model_copy(update={"tenant": tenant})


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


REQUEST_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": Registration.model_json_schema(),
                "example": {"name": "smart-home", "source": "hf://acme/smart-home@v2"},
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
                        "allow_base_mismatch": {"type": "boolean"},
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
