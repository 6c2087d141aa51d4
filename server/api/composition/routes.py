"""The route that composes a version from others."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from adapters_registry.composition.parts import MAX_PARTS
from adapters_registry.names import check_name
from adapters_registry.records.tenants import no_tenant
from adapters_registry.registry import Registry
from server.api.admin.adapters import MAX_NUMBER, answer_registration
from server.api.admin.bodies import VersionBody
from server.api.admin.idempotency import IdempotencyHeader, idempotency
from server.api.admin.registration import check_free
from server.api.composition.compositions import Compositions, Wanted
from server.api.routes import Routes
from server.gate.gate import Gate
from server.settings import Settings

MAX_MODEL_CHARACTERS = 256


class PartBody(BaseModel):
    """One of the adapters that are added."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(
        max_length=MAX_MODEL_CHARACTERS,
        description="As in requests: a name, tenant/name, and either with @version, @alias or "
        "@sha256:digest. A split alias means the version with the largest share.",
        examples=["style@2"],
    )
    weight: float = Field(1, description="How often it is added; it may be negative.")


class CompositionBody(BaseModel):
    """What is added to make the adapter's next version."""

    model_config = ConfigDict(extra="forbid")

    parts: list[PartBody] = Field(min_length=1, max_length=MAX_PARTS)
    rank: int | None = Field(
        None,
        ge=1,
        le=MAX_NUMBER,
        description="The rank of the best fit. Null means the exact sum, whose rank is the sum of "
        "the parts' ranks.",
    )
    promote: bool = False


def router(
    registry: Registry, gate: Gate, compositions: Compositions, settings: Settings
) -> Routes:
    """Return the route of compositions."""
    routes = Routes(prefix="/adapters/{tenant}/{name}", tags=["admin"])

    @routes.post(
        "/compose",
        status_code=202,
        responses={
            200: {"description": "This content is a version already.", "model": VersionBody},
            201: {"description": "Ready (with `wait=true`).", "model": VersionBody},
            409: {"description": "A part is a version that is not ready."},
            422: {"description": "Rejected (with `wait=true`), with every reason."},
            429: {"description": "The tenant may have no more, or has too many in the making."},
        },
    )
    async def compose(
        tenant: str,
        name: str,
        body: CompositionBody,
        request: Request,
        response: Response,
        wait: Annotated[bool, Query(description="Answer once the version was checked.")] = False,
        idempotency_key: IdempotencyHeader = None,
    ) -> VersionBody:
        """Add versions with weights, and register the sum as the adapter's next version.

        The parts are the tenant's own adapters, or shared with it. Their sum is exact, unless
        `rank` asks for the best fit of that rank. The metadata name the parts, and say by how much
        a fit differs, in all and by layer. Otherwise it is a version like any other: the gate
        checks it. Answers as `POST /admin/adapters` does.
        """
        owner = registry.catalog.tenants.get(tenant)
        if owner is None:
            raise no_tenant(tenant)
        check_name(name, "adapter")
        check_free(name, settings.served_base_name)
        parts = await compositions.find_parts([(p.model, p.weight) for p in body.parts], owner)
        wanted = Wanted(tenant, name, parts, body.rank, body.promote)
        version, is_new = await compositions.make(wanted, idempotency(request, idempotency_key))
        return await answer_registration(gate, version, response, is_new=is_new, wait=wait)

    return routes
