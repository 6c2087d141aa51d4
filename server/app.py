"""The composition root: settings, registry, keys and engine become one FastAPI app."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable

from fastapi import FastAPI

from adapters_registry.registry import Registry
from server.api import admin, front_page, lora_loading, models, recent_requests
from server.api.admin.intakes import Intakes
from server.api.composition.compositions import Compositions
from server.api.composition.on_request import OnRequest
from server.api.inference import DataPlane
from server.api.intake.intake import Intake
from server.api.metrics_page import MetricsPage, add_metrics
from server.api.openapi import document_bodies
from server.api.operations import add_probes
from server.auth import Keys
from server.console.app import build_console
from server.console.navigation import ROOT
from server.console.pages.playground import answering
from server.console.parts import Services
from server.console.sessions import SECRET_BYTES
from server.engine.interface import Engine, EngineState
from server.errors import mapping
from server.gate.gate import Gate
from server.lifecycle import Lifecycle
from server.middleware.authentication import Authentication
from server.middleware.body_limit import BodyLimit
from server.middleware.cors import Cors
from server.middleware.request_id import RequestId
from server.middleware.request_log import RequestLog
from server.middleware.security_headers import SecurityHeaders
from server.request_log.lines import RequestLines
from server.request_log.recent import RecentRequests
from server.residency.leases import Leases
from server.rollout.evaluation import asking
from server.rollout.rollouts import Rollouts
from server.settings import Settings
from server.tenancy.bytes_in_flight import BytesInFlight
from server.tenancy.prompt_queue import PromptQueue
from server.tenancy.quotas import Quotas
from server.tenancy.usage import UsageBuffer
from server.tracing.traces import Traces


def build_app(
    settings: Settings,
    registry: Registry,
    keys: Keys,
    engine: Engine,
    leases: Leases,
    gate: Gate,
    lifecycle: Lifecycle,
    usage_buffer: UsageBuffer,
    request_lines: RequestLines | None = None,
    session_secret: bytes | None = None,
    traces: Traces | None = None,
    clock: Callable[[], float] = time.monotonic,
    rollouts: Rollouts | None = None,
) -> FastAPI:
    """Put the parts together; starts nothing.

    `request_lines`: where requests are logged. `session_secret` signs the console's sessions; None
    makes a secret that ends with the process. `traces`: where requests are traced, if at all.
    `clock`: the seconds by which quotas are counted; it never goes back. `rollouts`: for a server
    that runs them, too.
    """
    rollouts = rollouts or Rollouts(registry, leases)
    app = FastAPI(title="Loraplex", docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state = engine.app_state
    mapping.install(app)
    app.add_middleware(BodyLimit, max_upload_mib=settings.max_adapter_mib)
    app.add_middleware(Authentication, keys=keys)
    recent = RecentRequests()
    lines = request_lines or RequestLines("off")
    app.add_middleware(
        RequestLog, recent=recent, lines=lines, traces=traces, note_arm=rollouts.arms.note
    )
    app.add_middleware(Cors, origins=settings.cors_origins, admin=settings.cors_admin)
    app.add_middleware(SecurityHeaders)
    app.add_middleware(RequestId)
    base_name = settings.served_base_name
    compositions = Compositions(registry, base_name, settings.max_adapter_mib)
    data_plane = DataPlane(
        engine,
        leases,
        registry,
        lifecycle,
        usage_buffer,
        base_name,
        Intake(BytesInFlight(settings.max_bodies_mib << 20, settings.max_tenant_bodies_mib << 20)),
        Quotas(),
        PromptQueue(engine.max_running, engine.prefill_tokens, settings.max_waiting),
        settings.max_choices,
        settings.request_seconds,
        OnRequest(
            registry,
            gate,
            compositions,
            base_name,
            settings.keep_compositions,
            settings.load_seconds,
        ),
        clock,
    )
    app.include_router(data_plane.router())
    rollouts.judge.ask = asking(answering(data_plane), registry)
    document_bodies(app, engine.endpoints)
    app.include_router(models.router(registry, leases, base_name, registry.base.name))
    intakes = Intakes(registry, settings)
    app.include_router(
        admin.router(
            registry, keys, gate, leases, usage_buffer, settings, intakes, rollouts, compositions
        )
    )
    app.include_router(lora_loading.router(registry, gate, leases, intakes))
    app.include_router(recent_requests.router(recent))
    app.include_router(
        front_page.router(
            base_name, lambda: engine.state is EngineState.READY and lifecycle.prepared
        )
    )
    add_probes(app, registry, engine, lifecycle)
    services = Services(
        settings, registry, keys, engine, leases, gate, usage_buffer, recent, data_plane, intakes
    )
    app.mount(ROOT, build_console(services, session_secret or secrets.token_bytes(SECRET_BYTES)))
    if settings.operations_port is None:
        page = MetricsPage(registry, leases, settings.max_loras)
        add_metrics(app, page, settings.scrape_token)
    return app


def build_operations_app(
    settings: Settings,
    registry: Registry,
    engine: Engine,
    leases: Leases,
    lifecycle: Lifecycle,
) -> FastAPI:
    """Put together what answers on the operations' own port: the probes and `/metrics`."""
    app = FastAPI(title="Loraplex operations", docs_url=None, redoc_url=None, openapi_url=None)
    mapping.install(app)
    app.add_middleware(BodyLimit, max_upload_mib=0)
    app.add_middleware(SecurityHeaders)
    add_probes(app, registry, engine, lifecycle)
    page = MetricsPage(registry, leases, settings.max_loras)
    add_metrics(app, page, settings.scrape_token)
    return app
