"""Models that a request names by their source: `hf://org/repo@revision` is registered on first use.

A tenant's policy says which sources its requests may name. The version that comes of a source is
like any other: it passes the gate, counts for the quotas, and belongs to an adapter of the tenant,
which is named after the source. An alias of that adapter stands for each revision that was asked
for. So later requests find the version in the catalog, on every replica, and nothing is fetched.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from adapters_registry.errors import SourceRefused
from adapters_registry.records.aliases import point_alias
from adapters_registry.records.catalog import Target, VersionRecord
from adapters_registry.records.tables import VersionState
from adapters_registry.registry import Registry
from adapters_registry.trust.sources import RequestedSource, is_allowed
from server.api.admin.intakes import Intakes
from server.api.admin.registration import RegistrationBody
from server.api.resolve import resolve
from server.auth import Caller
from server.errors import InvalidRequest, ModelIncompatible, ModelNotFound, OverQuota, rejected
from server.errors.mapping import to_api_error
from server.errors.of_sources import SourceNotAllowed, SourcePending
from server.gate.gate import CHECKABLE, Gate
from server.residency.leases import Leases
from server.workers import Workers

REQUESTED_AS = "requested_as"
"""The entry of a version's metadata that says which source a request named."""
MAX_PENDING = 4
"""How many sources one tenant's requests register at a time. Further ones are refused."""
RETRY_SECONDS = 5
"""When to ask again for a source that is being registered, or failed for a passing reason."""
REFUSED_SECONDS = 60.0
"""How long a source that cannot be used is not looked at again."""
_MAX_FAILURES = 1000

_Key = tuple[str, str]
"""A tenant's id, and a source."""


@dataclass(frozen=True)
class _Failure:
    error: Exception
    until: float


class RequestSources:
    """Finds the versions of sources that requests name, and registers those that are missing."""

    def __init__(
        self,
        registry: Registry,
        gate: Gate,
        leases: Leases,
        intakes: Intakes,
        wait_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`wait_seconds`: how long a request waits for a registration."""
        self._registry, self._gate, self._leases = registry, gate, leases
        self._intakes, self._wait_seconds, self._clock = intakes, wait_seconds, clock
        self._pending: dict[_Key, asyncio.Task[VersionRecord]] = {}
        self._failures: OrderedDict[_Key, _Failure] = OrderedDict()
        self._workers = Workers("sources", 1)

    async def resolve(
        self, model: str, caller: Caller, conversation: str | None = None
    ) -> VersionRecord:
        """Return the version of a source for a caller. Waits while it is registered.

        Raises:
            InvalidRequest: `model` is not of the form of a source.
            SourceNotAllowed: the tenant's policy does not allow it.
            ModelNotFound, Rejected: it does not exist, or cannot work on this base.
            SourcePending: it is not ready in time. The registration goes on.
            OverQuota: the tenant has too many such registrations running.
            RegistryError: as in a registration.
        """
        try:
            requested = RequestedSource.parse(model)
        except SourceRefused as error:
            raise InvalidRequest(str(error), param="model") from error
        record = self._registry.catalog.tenants.get(caller.tenant)
        if record is None or not is_allowed(requested, record.policy.sources):
            raise SourceNotAllowed(
                f"requests of the tenant {caller.tenant} may not name the source "
                f"{requested.location}: register it as an adapter, or have an admin allow it "
                f"(`loraplex tenants policy {caller.tenant} --source {requested.location}`)",
                param="model",
            )
        known = self._known(requested, caller, conversation)
        return known or await self._registered(requested, caller)

    def _known(
        self, requested: RequestedSource, caller: Caller, conversation: str | None
    ) -> VersionRecord | None:
        name = f"{caller.tenant}/{requested.adapter_name}@{requested.alias}"
        try:
            return resolve(name, caller, self._registry.catalog, "", conversation)
        except ModelIncompatible:
            raise
        except ModelNotFound:
            return None

    async def _registered(self, requested: RequestedSource, caller: Caller) -> VersionRecord:
        key = caller.tenant_id, requested.source
        failure = self._failures.get(key)
        if failure is not None and failure.until > self._clock():
            raise failure.error.with_traceback(None)
        task = self._pending.get(key) or self._begin(key, requested, caller)
        # `wait` leaves the task alone: neither the bound nor a client that goes away ends it.
        done, _ = await asyncio.wait({task}, timeout=self._wait_seconds)
        if not done:
            raise SourcePending(
                f"{requested.source} is being fetched and checked, which takes longer than "
                f"{self._wait_seconds:g} s (LORAPLEX_SOURCE_WAIT_SECONDS); it goes on without this "
                "request: send the request again in a while",
                retry_after_seconds=RETRY_SECONDS,
                param="model",
            )
        return task.result()

    def _begin(
        self, key: _Key, requested: RequestedSource, caller: Caller
    ) -> asyncio.Task[VersionRecord]:
        tenant_id, _ = key
        if sum(other == tenant_id for other, _ in self._pending) >= MAX_PENDING:
            raise OverQuota(
                f"{MAX_PENDING} sources are being registered for requests of the tenant "
                f"{caller.tenant} already: wait until one is ready",
                retry_after_seconds=RETRY_SECONDS,
                param="model",
            )
        task = asyncio.create_task(self._register(requested, caller))
        self._pending[key] = task
        task.add_done_callback(partial(self._end, key))
        return task

    async def _register(self, requested: RequestedSource, caller: Caller) -> VersionRecord:
        """Register a source as a version of its adapter, and point the revision's alias to it."""
        asked = RegistrationBody(
            name=requested.adapter_name,
            tenant=caller.tenant,
            source=requested.source,
            metadata={REQUESTED_AS: requested.source},
        )
        try:
            version, _ = await self._intakes.register_from_source(asked)
        except SourceRefused as error:
            raise ModelNotFound(str(error), param="model") from error
        if version.state in CHECKABLE:
            self._gate.start(version)
        version = await self._gate.verdict(version)
        if version.state is not VersionState.READY:
            raise rejected(version.reasons)
        await self._workers.run(
            self._registry.apply,
            point_alias,
            version.tenant,
            version.name,
            requested.alias,
            [Target(version.number, 100)],
        )
        self._leases.follow(self._registry.catalog)
        return version

    def _end(self, key: _Key, task: asyncio.Task[VersionRecord]) -> None:
        """Forget a registration that has ended. If it failed, remember that for a while."""
        del self._pending[key]
        self._failures.pop(key, None)
        if task.cancelled() or not isinstance(error := task.exception(), Exception):
            return
        is_final = to_api_error(error).status < 500
        seconds = REFUSED_SECONDS if is_final else RETRY_SECONDS
        self._failures[key] = _Failure(error, self._clock() + seconds)
        while len(self._failures) > _MAX_FAILURES:
            self._failures.popitem(last=False)
