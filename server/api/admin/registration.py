"""What a registration says: a JSON body that names a source, or the fields of an upload."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from adapters_registry.composition.metadata import ON_REQUEST_NAME
from adapters_registry.content.adapter_files import ADAPTER_FILES, COMPANION_FILES
from adapters_registry.recording import check_metadata
from server.auth import Caller
from server.errors import Forbidden, InvalidRequest


class RegistrationBody(BaseModel):
    """The adapter whose next version is registered, and how."""

    model_config = ConfigDict(extra="forbid")

    name: str
    tenant: str | None = Field(None, description="Default: the key's.")
    source: str = Field(
        "",
        description="A path on the server, hf://org/repo@revision, "
        "hf://org/repo/folder@revision, s3://bucket/prefix or oci://registry/repository:tag.",
    )
    promote: bool = False
    metadata: dict[str, Any] = Field(default_factory=dict)
    allow_base_mismatch: bool = Field(
        False, description="The configuration may name another base; recorded in the metadata."
    )
    fit_rank: bool = Field(
        False,
        description="If its rank is over the server's limit, keep it for a server with a higher "
        "one, and register its best fit at the limit as the next version.",
    )


def from_json(body: bytes, caller: Caller, base_name: str) -> RegistrationBody:
    """Read the JSON body of a registration that names a source.

    Raises:
        Forbidden, NotFound: the caller may not register from there, or for that tenant.
        InvalidRequest, InvalidMetadata: the body has a value that is not allowed.
    """
    asked = _for_caller(_parse(_parse_json(body)), caller, base_name)
    if not asked.source:
        raise InvalidRequest("give a source, or upload the files", param="source")
    return asked


def from_form(fields: Mapping[str, str], caller: Caller, base_name: str) -> RegistrationBody:
    """Read the fields of a form whose files are the adapter's. Raises what `from_json` raises."""
    values: dict[str, Any] = dict(fields)
    if "metadata" in values:
        values["metadata"] = _parse_json(values["metadata"], "metadata")
    return _for_caller(_parse(values), caller, base_name)


def _for_caller(asked: RegistrationBody, caller: Caller, base_name: str) -> RegistrationBody:
    """Return the registration with its tenant, if the caller may make it."""
    tenant = caller.tenant if asked.tenant is None else asked.tenant
    caller.require_tenant(tenant)
    check_metadata(asked.metadata)
    if asked.source and not caller.is_admin:
        # The server would read with its own rights, and the files may be another tenant's.
        raise Forbidden("only admins register from a source: upload the files", param="source")
    check_free(asked.name, base_name)
    return asked.model_copy(update={"tenant": tenant})


def check_free(name: str, base_name: str) -> None:
    """Raise `InvalidRequest` if no adapter may have this name, because it means something else."""
    if name == base_name:
        raise InvalidRequest(f"{base_name!r} is the base's name; choose another", param="name")
    if name == ON_REQUEST_NAME:
        raise InvalidRequest(
            f"{name!r} is kept for compositions that requests name; choose another", param="name"
        )


def _parse_json(text: str | bytes, field: str | None = None) -> Any:
    """Decode JSON that can be stored and sent again. NaN and lone surrogates are refused.

    `field` is the form's field that holds it; None if it is the whole body.
    """

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is not JSON")

    try:
        value = json.loads(text, parse_constant=refuse)
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{field or 'the body'} is not JSON: {error}", param=field) from error
    return value


def _parse(values: Any) -> RegistrationBody:
    try:
        return RegistrationBody.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        param = ".".join(str(part) for part in first["loc"]) or None
        raise InvalidRequest(f"{param or 'body'}: {first['msg']}", param=param) from error


REQUEST_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": RegistrationBody.model_json_schema(),
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
                        "fit_rank": {"type": "boolean"},
                        "files": {
                            "type": "array",
                            "items": {"type": "string", "format": "binary"},
                            "description": f"{' and '.join(ADAPTER_FILES)}; where they are there: "
                            f"{', '.join(COMPANION_FILES)}",
                        },
                    },
                }
            },
        },
    }
}
