"""The data plane: each request is received, resolved, counted, leased, and answered by vLLM.

The order matters, because nothing should be held for a request that can be refused. Its body is
read and checked first, then its model and its quota. Only then does it ask for a slot.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from fastapi import Depends, Request
from fastapi.responses import Response, StreamingResponse

from adapters_registry.composition.metadata import ON_REQUEST_NAME
from adapters_registry.composition.parts import WeightedVersion
from adapters_registry.records.catalog import VersionRecord
from adapters_registry.records.tenants import Quota
from adapters_registry.records.usage.consumption import Consumption
from adapters_registry.registry import Registry
from adapters_registry.trust.sources import is_source
from server import metrics
from server.api.composition.expression import is_composition
from server.api.composition.on_request import OnRequest
from server.api.dedicated.dedicated import Dedicated
from server.api.intake.intake import Intake, Received
from server.api.intake.suspended import require_active_tenant, require_in_service
from server.api.request_sources import RequestSources
from server.api.resolve import arm_of, resolve
from server.api.routes import Routes
from server.auth import Caller
from server.engine.interface import Endpoint, Engine
from server.errors import APIError, ContextTooLong, NotServing, Preempted, TookTooLong
from server.lifecycle import Lifecycle
from server.request_log.record import end_stage
from server.residency.leases import Leases
from server.residency.states import Tier
from server.tenancy.demand import COUNTED_ONLY, Demand, answer_tokens_of
from server.tenancy.log_probabilities import (
    PromptLogProbabilities,
    limit_log_probabilities,
    prompt_field,
)
from server.tenancy.meter import Meter, current_meter
from server.tenancy.prompt_queue import PromptQueue
from server.tenancy.quotas import Quotas, limit_answer, limit_choices
from server.tenancy.service_tiers import FLEX, PRIORITY, usable_tier
from server.tenancy.timing import Timing
from server.tenancy.usage import UsageBuffer


@dataclass(frozen=True)
class Admitted:
    """A request that may run: vLLM's request, and the version on which it holds a lease."""

    request: Any
    version: VersionRecord | None
    """None for the base."""
    tools_left_out: tuple[str, ...]


@dataclass(frozen=True)
class DataPlane:
    """The parts that all inference routes share."""

    engine: Engine
    leases: Leases
    registry: Registry
    lifecycle: Lifecycle
    usage_buffer: UsageBuffer
    base_name: str
    intake: Intake
    quotas: Quotas
    prompt_queue: PromptQueue
    max_choices: int
    request_seconds: float | None
    on_request: OnRequest
    request_sources: RequestSources
    clock: Callable[[], float] = time.monotonic
    """Seconds, for the quotas and the timing of requests; it never goes back."""
    dedicated: Dedicated | None = None
    """What a dedicated server answers. None on a shared server."""

    def router(self, only: Collection[str] | None = None) -> Routes:
        """Return the routes of OpenAI's and Anthropic's APIs: all, or only those paths."""
        routes = Routes(tags=["inference"])
        for path, endpoint in self.engine.endpoints.items():
            if only is None or path in only:
                answer = self._route(endpoint)
                routes.add_api_route(path, answer, methods=["POST"], response_model=None)
        return routes

    def _route(self, endpoint: Endpoint) -> Callable[..., Awaitable[Response]]:
        async def admit(raw_request: Request) -> AsyncIterator[Admitted]:
            """Admit the request. What it still holds at the end of its answer is released then."""
            async with self._admitted(raw_request, endpoint) as admitted:
                yield admitted

        async def answer(raw_request: Request, admitted: Admitted = Depends(admit)) -> Response:
            return await self._answer(endpoint, raw_request, admitted)

        return answer

    @asynccontextmanager
    async def _admitted(self, raw_request: Request, endpoint: Endpoint) -> AsyncIterator[Admitted]:
        """Take a request through every step up to the engine, in the order of the steps."""
        if self.lifecycle.draining:
            raise NotServing("the server is shutting down; try another replica")
        self.engine.require_ready()
        started = self.clock()
        caller: Caller = raw_request.state.caller
        require_active_tenant(caller, self.registry.catalog)
        async with AsyncExitStack() as held:
            received = await held.enter_async_context(
                self.intake.received(raw_request, endpoint, caller.tenant)
            )
            end_stage("body")
            version, parts = await self._resolve(raw_request, received)
            meter = await held.enter_async_context(
                self._within_quota(raw_request, endpoint, received)
            )
            if parts:
                version = await self.on_request.version(parts, caller.tenant)
                raw_request.state.version = version.number
                require_in_service(version, caller, self.registry.catalog)
            tier = ""
            if version is not None and endpoint.generates:
                lease = await held.enter_async_context(self.leases.lease(version, caller.tenant))
                raw_request.state.lease = lease
                meter.on_work_over(lease.end)
                lease.on_preempted(partial(_preempt, meter))
                tier = lease.tier.value
            if self.request_seconds is not None:
                loop, seconds = asyncio.get_running_loop(), self.request_seconds
                held.callback(loop.call_later(seconds, _time_out, meter, seconds).cancel)
            meter.timing = Timing(
                started,
                caller.tenant,
                raw_request.state.adapter,
                tier,
                clock=self.clock,
                trace_id=meter.record.trace_id,
            )
            yield Admitted(received.request, version, received.tools_left_out)

    async def _resolve(
        self, raw_request: Request, received: Received
    ) -> tuple[VersionRecord | None, tuple[WeightedVersion, ...]]:
        """Return the version that a request names, None for the base, or a composition's parts."""
        caller, state = raw_request.state.caller, raw_request.state
        model, conversation = received.model or self.base_name, received.conversation
        catalog = self.registry.catalog
        if self.dedicated:
            self.dedicated.require(model, caller, catalog)
        if is_source(model):
            version: VersionRecord | None = await self.request_sources.resolve(
                model, caller, conversation
            )
            catalog = self.registry.catalog
        elif is_composition(model, self.base_name):
            parts = self.on_request.parts_of(model, caller, conversation)
            for part in parts:
                require_in_service(part.version, caller, catalog)
            state.adapter, state.version = f"{caller.tenant}/{ON_REQUEST_NAME}", None
            return None, parts
        else:
            version = resolve(model, caller, catalog, self.base_name, conversation)
        state.adapter = version.adapter_id if version else self.base_name
        state.version = version.number if version else None
        if version is not None:
            require_in_service(version, caller, catalog)
        state.arm = arm_of(model, version, catalog)
        return version, ()

    @asynccontextmanager
    async def _within_quota(
        self, raw_request: Request, endpoint: Endpoint, received: Received
    ) -> AsyncIterator[Meter]:
        """Reserve what the request asks for. When it has ended, count what it really used."""
        caller: Caller = raw_request.state.caller
        tenant = caller.tenant
        record = self.registry.catalog.tenants.get(tenant)
        quota = record.quota if record else Quota()
        demand = self._limited(received, quota)
        with ExitStack() as held:
            if endpoint.generates:
                places = held.enter_context(self.prompt_queue.places(tenant, demand.choices))
            else:
                places, demand = None, COUNTED_ONLY
            reservation = self.quotas.enter(caller.tenant_id, quota, demand, self.clock())
            meter = Meter(
                self.prompt_queue,
                tenant,
                quota.weight,
                places=places,
                prompt_log_probabilities=PromptLogProbabilities(prompt_field(received.request)),
                service_tier=usable_tier(received.service_tier, quota.service_tiers),
                names_tier=received.service_tier is not None,
            )
            meter.record.service_tier = meter.service_tier.name
            current_meter.set(meter)
            raw_request.state.quota = quota
            try:
                with self.lifecycle.running() as end_running:
                    meter.on_work_over(end_running)
                    yield meter
                    await meter.ended()
            finally:
                if meter.timing:
                    meter.timing.end()
                self.quotas.leave(
                    reservation, meter.input_tokens, meter.output_tokens, self.clock()
                )
                self._record_usage(raw_request, meter)

    def _limited(self, received: Received, quota: Quota) -> Demand:
        """Return what a request asks for, within the bounds that hold for its tenant."""
        demand, longest = received.demand, self.engine.longest_prompt_characters
        limit_choices(demand, quota, self.max_choices)
        if longest is not None and demand.longest_prompt_characters > longest:
            raise ContextTooLong(
                f"the prompt has {demand.longest_prompt_characters} characters, and no prompt of "
                f"over {longest} fits the context of this model",
                param=demand.prompt_field,
            )
        limit_answer(received.request, quota.max_tokens, demand.choices)
        limit_log_probabilities(received.request, demand.choices)
        return replace(demand, answer_tokens=answer_tokens_of(received.request))

    def _record_usage(self, raw_request: Request, meter: Meter) -> None:
        record = meter.record
        record.input_tokens, record.output_tokens = meter.input_tokens, meter.output_tokens
        record.failed = meter.failure is not None
        if not meter.tokens:
            return
        adapter = raw_request.state.adapter
        tenant_id = raw_request.state.caller.tenant_id
        self.usage_buffer.add(tenant_id, meter.tenant, adapter, _consumption(raw_request, meter))
        labels = metrics.tenant_label(meter.tenant), metrics.adapter_label(adapter)
        metrics.TOKENS.labels(*labels, "in").inc(meter.input_tokens)
        metrics.TOKENS.labels(*labels, "out").inc(meter.output_tokens)

    async def _answer(
        self, endpoint: Endpoint, raw_request: Request, admitted: Admitted
    ) -> Response:
        caller, quota = raw_request.state.caller, raw_request.state.quota
        version = admitted.version
        try:
            response = await endpoint.handler(admitted.request, raw_request, version)
            meter, is_stream = current_meter.get(), isinstance(response, StreamingResponse)
            if meter and is_stream:
                await meter.checked()
        except APIError as error:
            if (meter := current_meter.get()) and meter.ended_by:
                raise meter.ended_by from error
            if error.status >= 500:
                self.engine.require_ready()  # if the engine has died meanwhile, say that instead
            raise
        if meter:
            meter.hand_over(complete=not is_stream)
        response.headers.update(self.quotas.headers(caller.tenant_id, quota, self.clock()))
        if left_out := ", ".join(admitted.tools_left_out):
            response.headers["x-tools-left-out"] = f"{left_out}; this server does not run them"
        if version is not None:
            response.headers["x-adapter-id"] = version.adapter_id
            response.headers["x-adapter-version"] = str(version.number)
            response.headers["x-adapter-digest"] = f"sha256:{version.digest}"
        if (lease := getattr(raw_request.state, "lease", None)) is not None:
            response.headers["x-adapter-tier"] = lease.tier.value
        return response


def _preempt(meter: Meter) -> None:
    message = (
        f"the request was ended so that another tenant gets a slot, as {meter.tenant} holds more "
        "than its share: try again, and use fewer adapters at a time or a smaller max_tokens"
    )
    _end_early(meter, Preempted(message))


def _time_out(meter: Meter, seconds: float) -> None:
    message = (
        f"the request was ended after {seconds:g} s, which is as long as one may run on this "
        "server: ask for fewer tokens"
    )
    _end_early(meter, TookTooLong(message))


def _end_early(meter: Meter, error: APIError) -> None:
    """End a request that runs with an error, and count that by the error's code."""
    metrics.ENDED_EARLY.labels(metrics.tenant_label(meter.tenant), error.code).inc()
    meter.end_early(error)


def _consumption(raw_request: Request, meter: Meter) -> Consumption:
    used = Consumption(1, meter.input_tokens, meter.output_tokens)
    if meter.service_tier is FLEX:
        used.flex_input_tokens, used.flex_output_tokens = meter.input_tokens, meter.output_tokens
    elif meter.service_tier is PRIORITY:
        used.priority_input_tokens = meter.input_tokens
        used.priority_output_tokens = meter.output_tokens
    if (lease := getattr(raw_request.state, "lease", None)) is not None:
        used.slot_seconds = lease.seconds
        used.cold_starts = int(lease.tier is not Tier.SLOT)
    return used
