"""The requests of the last hour: what each asked for, and where it spent its time."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Query, Request
from pydantic import BaseModel, Field

from adapters_registry.errors import NotFound
from server.api.routes import Routes
from server.auth import Caller
from server.request_log.recent import RecentRequests
from server.request_log.record import STAGES, RequestRecord

MAX_LIMIT = 1000


class RequestBody(BaseModel):
    """One request that has ended. Times are in seconds."""

    at: str = Field(description="When it arrived.")
    request_id: str
    trace_id: str = Field(description="Of its trace, in hexadecimal; empty without one.")
    method: str
    path: str
    status: int = Field(description="499: the client left before the answer began.")
    complete: bool = Field(description="False if the answer was cut off.")
    tenant: str
    key_id: str = Field(description="The public part of the API key.")
    model: str = Field(description="`tenant/name`, or the base's name; empty if it had none yet.")
    version: int | None
    tier: str = Field(description="Where the adapter was found: slot, host, disk or origin.")
    service_tier: str = Field(description="default, flex or priority: the one that was used.")
    input_tokens: int
    output_tokens: int
    finish_reasons: list[str]
    seconds: float
    stages: dict[str, float] = Field(description=f"How long each took: {', '.join(STAGES)}.")


class RequestList(BaseModel):
    """Requests, the newest or the slowest first."""

    data: list[RequestBody]


def router(recent: RecentRequests) -> Routes:
    """Return the routes of recent requests."""
    routes = Routes(prefix="/admin/requests", tags=["admin"])

    @routes.get("", response_model=RequestList)
    async def list_requests(
        request: Request,
        tenant: str | None = None,
        model: Annotated[str | None, Query(description="As listed: `tenant/name`.")] = None,
        min_status: Annotated[int, Query(ge=0, le=599, description="400: only failed ones.")] = 0,
        order: Literal["newest", "slowest"] = "newest",
        limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = 50,
    ) -> Any:
        """List requests of the last hour on this server; with the scope `adapters` one's own."""
        caller: Caller = request.state.caller
        if tenant is not None:
            caller.require_tenant(tenant)

        def is_wanted(record: RequestRecord) -> bool:
            return (
                _may_see(caller, record)
                and tenant in (None, record.tenant)
                and model in (None, record.model)
                and record.status >= min_status
            )

        found = list(recent.find(is_wanted))
        if order == "slowest":
            found.sort(key=lambda record: record.seconds, reverse=True)
        return {"data": [record.as_json() for record in found[:limit]]}

    @routes.get("/{request_id}", response_model=RequestList)
    async def show_request(request: Request, request_id: str) -> Any:
        """Show the requests with this id; clients choose ids, so there may be several."""
        caller: Caller = request.state.caller
        found = recent.find(lambda r: r.request_id == request_id and _may_see(caller, r))
        rows = [record.as_json() for record in found]
        if not rows:
            raise NotFound(
                f"there is no request {request_id[:128]!r} among those that this server answered "
                "in the last hour"
            )
        return {"data": rows[:MAX_LIMIT]}

    return routes


def _may_see(caller: Caller, record: RequestRecord) -> bool:
    return caller.is_admin or record.tenant_id == caller.tenant_id
