"""What tenants have used, to show or charge them."""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from fastapi import Query, Request, Response
from pydantic import AwareDatetime, BaseModel, Field

from adapters_registry.records.tables import now
from adapters_registry.records.usage.reading import Used, read_usage
from adapters_registry.registry import Registry
from server.api.routes import Routes
from server.auth import Caller
from server.tenancy.usage import UsageBuffer
from server.workers import Workers

DEFAULT_SPAN = timedelta(days=31)
"""The default span. A year of many tenants would be millions of rows."""


class UsageBody(BaseModel):
    """What a tenant has used of an adapter, or of the base."""

    tenant: str
    tenant_id: str = Field(
        description="Whose it is, if several tenants had the name, one after the other. Empty: an "
        "earlier one's, from before ids were recorded."
    )
    adapter: str = Field(description="`tenant/name`, or the base's name.")
    requests: int
    input_tokens: int
    output_tokens: int
    slot_seconds: float = Field(description="Summed over the requests that held a slot together.")
    cold_starts: int = Field(description="Requests that found their version in no slot.")
    flex_input_tokens: int = Field(
        description="Of `input_tokens`, those of the service tier flex; likewise the next three. "
        "All others are of the tier default."
    )
    flex_output_tokens: int
    priority_input_tokens: int
    priority_output_tokens: int


class UsageList(BaseModel):
    """The usage of a span of time."""

    data: list[UsageBody]


def router(registry: Registry, usage_buffer: UsageBuffer, workers: Workers) -> Routes:
    """Return the route of usage."""
    routes = Routes(tags=["admin"])

    @routes.get("/usage", responses={200: {"content": {"text/csv": {}}}}, response_model=UsageList)
    async def show_usage(
        request: Request,
        tenant: str | None = None,
        since: Annotated[
            AwareDatetime | None,
            Query(
                description="Whole hours from here (whole days where usage is older than 90 days); "
                "default: 31 days before the end,"
            ),
        ] = None,
        until: Annotated[AwareDatetime | None, Query(description="to before here.")] = None,
        format: Literal["json", "csv"] = "json",
    ) -> Any:
        """Sum up usage by tenant and adapter; with the scope `adapters` one's own."""
        owner = owner_for(request.state.caller, tenant)
        first = since or _span_before(until or now())

        def read() -> list[UsageBody]:
            usage_buffer.save()
            with registry.session() as session:
                found = read_usage(session, **owner, since=first, until=until)
            return [body_of(used) for used in found]

        rows = await workers.run(read)
        return UsageList(data=rows) if format == "json" else csv_of(rows)

    return routes


def owner_for(caller: Caller, tenant: str | None) -> dict[str, Any]:
    """Return whose usage a caller may see, as filters of `read_usage`: all of it, or its own.

    Raises:
        NotFound: `tenant` is one that the caller does not manage.
    """
    if tenant is not None:
        caller.require_tenant(tenant)
    return {"tenant": tenant} if caller.is_admin else {"tenant_id": caller.tenant_id}


def _span_before(until: datetime) -> datetime:
    """Return the start of the default span, or the earliest possible time."""
    earliest = datetime.min.replace(tzinfo=UTC)
    return until - DEFAULT_SPAN if until - earliest > DEFAULT_SPAN else earliest


def body_of(used: Used) -> UsageBody:
    """Return what the API says of a sum."""
    whose = used._asdict()
    return UsageBody(**vars(whose.pop("consumption")), **whose)


def csv_of(rows: list[UsageBody]) -> Response:
    """Return a table of the rows, with the fields of the JSON as its columns."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(UsageBody.model_fields))
    writer.writeheader()
    writer.writerows(row.model_dump() for row in rows)
    return Response(text.getvalue(), media_type="text/csv")
