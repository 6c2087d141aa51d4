"""The composition root: settings, registry and engine become one server."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from fastapi import FastAPI

from adapters_registry.registry import Registry
from server.api import admin, front_page, lora_loading, models, recent_requests
from server.api.admin.intakes import Intakes
from server.api.composition.compositions import Compositions
from server.api.composition.on_request import OnRequest
from server.api.dedicated import routes as dedicated_routes
from server.api.dedicated.dedicated import Dedicated
from server.api.inference import DataPlane
from server.api.intake.intake import Intake
from server.api.metrics_page import MetricsPage, add_metrics
from server.api.openapi import complete_document
from server.api.operations import add_probes
from server.api.request_sources import RequestSources
from server.api.waiting import Waiting
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


@dataclass(frozen=True)
class Server:
    """The parts of one server. Nothing of them runs until a process runs it."""

    services: Services
    lifecycle: Lifecycle
    app: FastAPI
    operations_app: FastAPI
    """What answers on the operations' own port, if the settings name one."""


def build_server(
    settings: Settings,
    registry: Registry,
    engine: Engine,
    *,
    keys: Keys | None = None,
    leases: Leases | None = None,
    lifecycle: Lifecycle | None = None,
    request_lines: RequestLines | None = None,
    session_secret: bytes | None = None,
    traces: Traces | None = None,
    clock: Callable[[], float] = time.monotonic,
    rollouts: Rollouts | None = None,
    dedicated: Dedicated | None = None,
) -> Server:
    """Put the parts of a server together; starts nothing.

    `dedicated`: what the server answers if it is a dedicated one, whose `leases` must be given.
    `keys`, `leases`, `lifecycle` and `rollouts` are made if they are not given. `request_lines`:
    where requests are logged. `session_secret` signs the console's sessions; None makes a secret
    that ends with the process. `traces`: where requests are traced, if at all. `clock`: the seconds
    by which quotas are counted; it never goes back.
    """
    keys = keys or Keys(registry)
    leases = leases or Leases.of(settings, engine, registry)
    lifecycle = lifecycle or Lifecycle()
    usage_buffer, gate = UsageBuffer(registry), Gate(registry, engine, leases)
    base_name = settings.served_base_name
    compositions = Compositions(registry, base_name, settings.max_adapter_mib)
    intakes = Intakes(registry, settings)
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
        RequestSources(registry, gate, leases, intakes, settings.source_wait_seconds, clock),
        clock,
        dedicated,
    )
    services = Services(
        settings,
        registry,
        keys,
        engine,
        leases,
        gate,
        usage_buffer,
        RecentRequests(),
        data_plane,
        intakes,
        Waiting(leases, data_plane.prompt_queue),
        rollouts or Rollouts(registry, leases, only_reports=dedicated is not None),
        compositions,
    )
    arms = services.rollouts.arms
    app = _app(services, lifecycle)
    lines = request_lines or RequestLines("off")
    app.add_middleware(BodyLimit, max_upload_mib=settings.max_adapter_mib)
    app.add_middleware(Authentication, keys=keys)
    app.add_middleware(
        RequestLog, recent=services.recent, lines=lines, traces=traces, note_arm=arms.note
    )
    app.add_middleware(Cors, origins=settings.cors_origins, admin=settings.cors_admin)
    app.add_middleware(SecurityHeaders)
    app.add_middleware(RequestId)
    if dedicated is None:
        secret = session_secret or secrets.token_bytes(SECRET_BYTES)
        app.mount(ROOT, build_console(services, secret))
    return Server(services, lifecycle, app, _operations_app(services, lifecycle))


def _app(services: Services, lifecycle: Lifecycle) -> FastAPI:
    """Return what answers on the server's port, without middleware and console."""
    settings, registry, engine = services.settings, services.registry, services.engine
    dedicated = services.data_plane.dedicated
    app = FastAPI(title="Loraplex", docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state = engine.app_state
    mapping.install(app)
    services.data_plane.router().add_to(app)
    services.rollouts.judge.ask = asking(answering(services.data_plane), registry)
    complete_document(app, engine.endpoints)
    base_name = settings.served_base_name
    models.router(
        registry,
        services.leases,
        base_name,
        registry.base.name,
        services.data_plane.on_request,
        dedicated,
    ).add_to(app)
    if dedicated is None:
        _add_shared_routes(app, services)
    recent_requests.router(services.recent).add_to(app)
    if dedicated is not None:
        dedicated_routes.router(dedicated).add_to(app)
    front_page.router(
        base_name, lambda: engine.state is EngineState.READY and lifecycle.prepared
    ).add_to(app)
    add_probes(app, registry, engine, lifecycle)
    if settings.operations_port is None:
        _add_metrics(app, services)
    return app


def _add_shared_routes(app: FastAPI, services: Services) -> None:
    """Add the routes that change the registry, which a dedicated server does not have."""
    registry, gate, leases = services.registry, services.gate, services.leases
    admin.router(
        registry,
        services.keys,
        gate,
        leases,
        services.usage_buffer,
        services.settings,
        services.intakes,
        services.rollouts,
        services.compositions,
    ).add_to(app)
    lora_loading.router(registry, gate, leases, services.intakes).add_to(app)


def _operations_app(services: Services, lifecycle: Lifecycle) -> FastAPI:
    """Return what answers on the operations' own port: the probes and `/metrics`."""
    app = FastAPI(title="Loraplex operations", docs_url=None, redoc_url=None, openapi_url=None)
    mapping.install(app)
    app.add_middleware(BodyLimit, max_upload_mib=0)
    app.add_middleware(SecurityHeaders)
    add_probes(app, services.registry, services.engine, lifecycle)
    _add_metrics(app, services)
    return app


def _add_metrics(app: FastAPI, services: Services) -> None:
    settings = services.settings
    page = MetricsPage(
        services.registry,
        services.leases,
        services.waiting,
        settings.max_loras,
        settings.served_base_name,
    )
    add_metrics(app, page, settings.scrape_token)
