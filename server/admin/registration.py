"""What registering takes in: a JSON or multipart body, and the files that come with it."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import FormData, UploadFile

from adapters_registry.content import ADAPTER_FILES
from adapters_registry.errors import SourceRefused
from adapters_registry.names import DEFAULT_TENANT
from adapters_registry.sources import missing_file, stage_local_path
from server.errors import InvalidRequest

MAX_FORM_FILES = 16

Stage = Callable[[Path], None]
"""Puts an adapter's files into an empty directory."""


class Registration(BaseModel):
    """What to register the next version of."""

    model_config = ConfigDict(extra="forbid")

    name: str
    tenant: str = DEFAULT_TENANT
    source: str = ""
    promote: bool = False
    metadata: dict[str, Any] = Field(default_factory=dict)
    allow_base_mismatch: bool = Field(
        False, description="The configuration may name another base; recorded in the metadata."
    )


@asynccontextmanager
async def read_registration(
    request: Request, local_roots: tuple[Path, ...], max_bytes: int
) -> AsyncIterator[tuple[Registration, Stage]]:
    """The registration of a request, and what stages its files while the context is open.

    Raises:
        InvalidRequest: the body can't be understood.
    """
    if request.headers.get("content-type", "").startswith("multipart/form-data"):
        async with request.form(max_files=MAX_FORM_FILES) as form:
            yield _parse_form(form), _stage_upload(form, max_bytes)
    else:
        registration = _parse(_parse_json(await request.body()))
        yield registration, _stage_path(registration.source, local_roots, max_bytes)


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


def _stage_path(source: str, local_roots: tuple[Path, ...], max_bytes: int) -> Stage:
    if not source:
        raise InvalidRequest("give a source, or upload the files", param="source")
    return lambda staged: stage_local_path(source, local_roots, staged, max_bytes)


def _stage_upload(form: FormData, max_bytes: int) -> Stage:
    """Copy the uploaded parts, which the framework has spooled to disk, to the staging folder."""
    parts = form.getlist("files")
    uploads = {part.filename: part for part in parts if isinstance(part, UploadFile)}

    def stage(staged: Path) -> None:
        if sum(upload.size or 0 for upload in uploads.values()) > max_bytes:
            raise SourceRefused("the files are over the limit (LORAPLEX_MAX_ADAPTER_MIB)")
        for name in ADAPTER_FILES:
            if name not in uploads:
                raise SourceRefused(missing_file(name))
            with (staged / name).open("wb") as target:
                shutil.copyfileobj(uploads[name].file, target)

    return stage


REQUEST_BODY: dict[str, Any] = {
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
