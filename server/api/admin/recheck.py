"""Versions of another base are checked on this server's, when an operator or owner says so."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import Query, Response
from pydantic import BaseModel, ConfigDict, Field

from adapters_registry.registry import Registry
from adapters_registry.verdicts import begin_recheck
from server.api.admin.bodies import VersionBody
from server.api.routes import Routes
from server.gate.gate import Gate
from server.workers import Workers


class RecheckBody(BaseModel):
    """How to check."""

    model_config = ConfigDict(extra="forbid")

    allow_base_mismatch: bool = Field(
        False, description="The configuration may name another base; recorded in the metadata."
    )


class Rechecked(BaseModel):
    """The versions that are, or were, checked."""

    data: list[VersionBody]


def router(registry: Registry, gate: Gate, workers: Workers) -> Routes:
    """Return the route that checks versions of another base again."""
    routes = Routes(prefix="/adapters/{tenant}/{name}", tags=["admin"])

    @routes.post(
        "/recheck",
        status_code=202,
        responses={200: {"description": "Checked.", "model": Rechecked}},
    )
    async def recheck(
        tenant: str,
        name: str,
        response: Response,
        body: RecheckBody | None = None,
        wait: Annotated[bool, Query(description="Answer once all were checked.")] = False,
    ) -> Rechecked:
        """Check the adapter's incompatible versions on this server's base.

        Those that pass are offered again. The others stay incompatible, with every reason. Answers
        202 at once, or with `wait=true` 200 and the verdicts.
        """
        allow_mismatch = body is not None and body.allow_base_mismatch
        versions = await workers.run(
            registry.apply, begin_recheck, tenant, name, allow_mismatch=allow_mismatch
        )
        for version in versions:
            gate.start(version)
        if wait:
            versions = await asyncio.gather(*map(gate.verdict, versions))
            response.status_code = 200
        return Rechecked(data=[VersionBody.of(version) for version in versions])

    return routes
