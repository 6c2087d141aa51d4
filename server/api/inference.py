"""The data plane: each request is resolved, leased, and handed to vLLM's own handler."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from adapters_registry.records.catalog import VersionRecord
from adapters_registry.records.tenants import Quota
from adapters_registry.records.usage import Consumption
from adapters_registry.registry import Registry
from server import metrics
from server.api.resolve import resolve
from server.auth import Caller
from server.engine.interface import Endpoint, Engine
from server.errors import APIError, InvalidRequest, Unavailable
from server.lifecycle import Lifecycle
from server.residency.leases import Leases
from server.residency.states import Tier
from server.tenancy.meter import Meter, current_meter
from server.tenancy.prompt_queue import PromptQueue
from server.tenancy.quotas import Quotas, limit_answer
from server.tenancy.timing import Timing
from server.tenancy.usage import UsageBuffer


def router(
    engine: Engine,
    leases: Leases,
    registry: Registry,
    lifecycle: Lifecycle,
    usage_buffer: UsageBuffer,
    base_name: str,
) -> APIRouter:
    """The routes of OpenAI's and Anthropic's APIs, each behind a lease."""

    async def hold_lease(request: Request) -> AsyncIterator[VersionRecord | None]:
        """Resolve and lease what the body's `model` names; released after the last byte."""
        if lifecycle.draining:
            raise Unavailable("the server is shutting down; try another replica")
        engine.require_ready()
        started = time.monotonic()
        caller: Caller = request.state.caller
        model, conversation = await _asked_for(request)
        async with within_quota(request, caller.tenant) as meter:
            version = resolve(model, caller, registry.catalog, base_name, conversation)
            request.state.adapter = version.adapter_id if version else base_name
            if version is None:
                meter.timing = Timing(started, caller.tenant, base_name, "")
                yield None
                return
            async with leases.lease(version) as tier:
                request.state.tier, request.state.leased_at = tier, time.monotonic()
                meter.timing = Timing(started, caller.tenant, version.adapter_id, tier.value)
                yield version

    @asynccontextmanager
    async def within_quota(request: Request, tenant: str) -> AsyncIterator[Meter]:
        """Count the request and, when it has ended, its tokens."""
        record = registry.catalog.tenants.get(tenant)
        quota = record.quota if record else Quota()
        quotas.enter(tenant, quota, time.monotonic())
        meter = Meter(turns, tenant, quota.weight)
        current_meter.set(meter)
        request.state.quota = quota
        try:
            with lifecycle.running():
                yield meter
                await meter.ended()
        finally:
            if meter.timing:
                meter.timing.end()
            quotas.leave(tenant, quota, meter.tokens, time.monotonic())
            if meter.tokens:
                usage_buffer.add(tenant, request.state.adapter, _consumption(request, meter))
                labels = metrics.tenant_label(tenant), metrics.adapter_label(request.state.adapter)
                metrics.TOKENS.labels(*labels, "in").inc(meter.input_tokens)
                metrics.TOKENS.labels(*labels, "out").inc(meter.output_tokens)

    quotas, turns = Quotas(), PromptQueue(engine.max_running, engine.prefill_tokens)
    routes = APIRouter(tags=["inference"])
    for path, endpoint in engine.endpoints.items():
        routes.add_api_route(
            path,
            _answer(engine, quotas, endpoint, hold_lease),
            methods=["POST"],
            response_model=None,
        )
    return routes


def _consumption(request: Request, meter: Meter) -> Consumption:
    used = Consumption(1, meter.input_tokens, meter.output_tokens)
    if (leased_at := getattr(request.state, "leased_at", None)) is not None:
        used.slot_seconds = time.monotonic() - leased_at
        used.cold_starts = int(request.state.tier is not Tier.SLOT)
    return used


def _answer(engine: Engine, quotas: Quotas, endpoint: Endpoint, hold_lease: Any) -> Any:
    async def answer(
        request: Any,
        raw_request: Request,
        version: VersionRecord | None = Depends(hold_lease),
    ) -> Response:
        caller, quota = raw_request.state.caller, raw_request.state.quota
        limit_answer(request, quota.max_tokens)
        try:
            response = await endpoint.handler(request, raw_request, version)
        except APIError as error:
            if error.status >= 500:
                engine.require_ready()  # if the engine has died meanwhile, that is the answer
            raise
        response.headers.update(quotas.headers(caller.tenant, quota, time.monotonic()))
        if version is not None:
            response.headers["x-adapter-id"] = version.adapter_id
            response.headers["x-adapter-version"] = str(version.number)
            response.headers["x-adapter-digest"] = f"sha256:{version.digest}"
            response.headers["x-adapter-tier"] = raw_request.state.tier.value
        return response

    answer.__annotations__["request"] = endpoint.body
    return answer


async def _asked_for(request: Request) -> tuple[str, str | None]:
    """The model that the body names, and whose conversation it belongs to, if it says so."""
    try:
        body = await request.json()  # the framework has parsed it before; this is its copy
    except ValueError as error:
        raise InvalidRequest(f"the body is no JSON: {error}") from error
    model = body.get("model") if isinstance(body, dict) else None
    if not isinstance(model, str) or not model:
        raise InvalidRequest("name a model: the base or an adapter", param="model")
    return model, request.headers.get("x-conversation-id") or conversation_of(body)


def conversation_of(body: dict[str, Any]) -> str | None:
    """What a body of OpenAI's or Anthropic's API says of its conversation, else of its user."""
    metadata = body.get("metadata")
    for value in (
        body.get("conversation"),
        body.get("prompt_cache_key"),
        body.get("safety_identifier"),
        body.get("user"),
        metadata.get("user_id") if isinstance(metadata, dict) else None,
    ):
        if isinstance(value, dict):
            value = value.get("id")
        if isinstance(value, str) and value:
            return value
    return None
