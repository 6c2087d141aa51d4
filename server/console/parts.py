"""What the console's pages are made of."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import Request

from adapters_registry.registry import Registry
from server.api.admin.intakes import Intakes
from server.api.composition.compositions import Compositions
from server.api.inference import DataPlane
from server.api.waiting import Waiting
from server.auth import Caller, Keys
from server.console.rendering import Renderer
from server.console.sessions import Sessions
from server.engine.interface import Engine
from server.gate.gate import Gate
from server.request_log.recent import RecentRequests
from server.residency.leases import Leases
from server.rollout.rollouts import Rollouts
from server.settings import Settings
from server.tenancy.usage import UsageBuffer
from server.workers import Workers

NUM_THREADS = 4


@dataclass(frozen=True)
class Services:
    """What the HTTP routes are made of, too."""

    settings: Settings
    registry: Registry
    keys: Keys
    engine: Engine
    leases: Leases
    gate: Gate
    usage_buffer: UsageBuffer
    recent: RecentRequests
    data_plane: DataPlane
    intakes: Intakes
    waiting: Waiting
    rollouts: Rollouts
    compositions: Compositions


@dataclass(frozen=True)
class Parts:
    """The services, and what makes pages of what they say."""

    services: Services
    sessions: Sessions
    renderer: Renderer
    workers: Workers
    """Threads for reading the database and for sorting long lists: no stream waits for them."""


def caller_of(request: Request) -> Caller:
    """Return whose session a request belongs to."""
    caller: Caller = request.state.caller
    return caller
