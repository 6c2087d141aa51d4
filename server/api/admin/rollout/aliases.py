"""Where an adapter's aliases point: promotion, canary splits, rollback."""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import Header, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from adapters_registry.errors import ChangedMeanwhile, NotFound
from adapters_registry.names import LIVE
from adapters_registry.records.aliases import point_alias, remove_alias, roll_back
from adapters_registry.records.catalog import AliasRecord, Target
from adapters_registry.registry import Registry
from server.api.admin.bodies import AliasBody, TargetBody, WarmAliasBody
from server.api.admin.idempotency import IdempotencyHeader, idempotency
from server.api.routes import Routes
from server.errors import InvalidRequest
from server.rollout.warm_promotions import WarmPromotions
from server.workers import Workers

MAX_WARM_SECONDS = 300
_ETAG = re.compile(r'"(\d{1,9})"', re.ASCII)


class AliasTargets(BaseModel):
    """The versions that an alias is to point to."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"targets": [{"version": 3}]},
                {"targets": [{"version": 4, "weight": 10}, {"version": 3, "weight": 90}]},
                {"targets": [{"version": 3}], "warm": True},
            ]
        },
    )

    targets: list[TargetBody] = Field(min_length=1)
    warm: bool = Field(
        False,
        description="Move the alias when every server that serves the adapter has the versions in "
        "host memory. The answer comes then.",
    )
    warm_seconds: float | None = Field(
        None,
        gt=0,
        le=MAX_WARM_SECONDS,
        description="With `warm`: after so many seconds the alias moves in any case. Default: "
        "`LORAPLEX_WARM_SECONDS`.",
    )


def router(
    registry: Registry, warm: WarmPromotions, warm_seconds: float, workers: Workers
) -> Routes:
    """Return the routes of aliases. `warm_seconds`: how long a warm promotion waits by default."""
    routes = Routes(prefix="/adapters/{tenant}/{name}", tags=["admin"])

    @routes.get("/aliases/{alias}")
    async def show_alias(tenant: str, name: str, alias: str, response: Response) -> AliasBody:
        """Show where an alias points. A change may send the ETag as `If-Match`."""
        record = registry.get_adapter(tenant, name).aliases.get(alias)
        if record is None:
            raise NotFound(f"{tenant}/{name} has no alias {alias!r}")
        return _body(alias, record, response)

    @routes.put("/aliases/{alias}")
    async def point(
        tenant: str,
        name: str,
        alias: str,
        body: AliasTargets,
        response: Response,
        if_match: Annotated[
            str | None, Header(description="The ETag that the client saw last.")
        ] = None,
        if_none_match: Annotated[
            str | None, Header(description="`*`: only if there is no such alias yet.")
        ] = None,
    ) -> WarmAliasBody | AliasBody:
        """Point an alias to ready versions: the new targets serve from the next request on.

        One target is a promotion, several are a split by weight. A request that names a
        conversation or user stays with one version while the weights stay. Answers that have
        begun finish on their own version. With `warm` the alias moves when servers have loaded the
        versions, and the answer says which of them have.
        """
        targets = [Target(target.version, target.weight) for target in body.targets]
        revision = _revision(if_match, if_none_match)
        if body.warm:
            seconds = body.warm_seconds or warm_seconds
            promoted = await warm.promote(
                tenant, name, alias, targets, wait_seconds=seconds, if_revision=revision
            )
            response.headers["etag"] = f'"{promoted.alias.revision}"'
            return WarmAliasBody.of_promotion(alias, promoted)
        record = await workers.run(
            registry.apply, point_alias, tenant, name, alias, targets, if_revision=revision
        )
        return _body(alias, record, response)

    @routes.delete("/aliases/{alias}", status_code=204)
    async def remove(tenant: str, name: str, alias: str) -> None:
        """Remove an alias. `live` cannot be removed."""
        await workers.run(registry.apply, remove_alias, tenant, name, alias)

    @routes.post("/rollback")
    async def rollback(
        request: Request,
        tenant: str,
        name: str,
        response: Response,
        alias: str = LIVE,
        idempotency_key: IdempotencyHeader = None,
    ) -> AliasBody:
        """Point `live` (or another alias) back to the version it had before."""
        record = await workers.run(
            registry.apply,
            roll_back,
            tenant,
            name,
            alias,
            idempotency=idempotency(request, idempotency_key),
        )
        return _body(alias, record, response)

    return routes


def _body(name: str, alias: AliasRecord, response: Response) -> AliasBody:
    response.headers["etag"] = f'"{alias.revision}"'
    return AliasBody.of(name, alias)


def _revision(if_match: str | None, if_none_match: str | None) -> int | None:
    """Return the revision that a change depends on; 0 means that there must be no alias."""
    if if_none_match is not None:
        if if_none_match.strip() != "*":
            raise InvalidRequest("If-None-Match: only '*' is understood", param="if-none-match")
        return 0
    if if_match is None or if_match.strip() == "*":
        return None
    match = _ETAG.fullmatch(if_match.strip())
    if match is None:
        raise ChangedMeanwhile("If-Match is not an ETag of this alias: read the alias again")
    return int(match[1])
