"""Compositions that a request names by its `model`: made at their first use, and then kept."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from contextvars import Context
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from adapters_registry.composition.keeping import NOTED_SHARE, note_use
from adapters_registry.composition.metadata import (
    ON_REQUEST_NAME,
    composed_of,
    is_on_request,
    used_at,
)
from adapters_registry.composition.parts import WeightedVersion, key_of
from adapters_registry.errors import CannotCompose, RegistryError
from adapters_registry.records.audit import current_actor
from adapters_registry.records.catalog import VersionRecord
from adapters_registry.records.tables import VersionState, now
from adapters_registry.records.tenants import Quota, no_tenant
from adapters_registry.registry import Registry
from server.api.composition.compositions import Compositions, Wanted
from server.api.composition.expression import parse_composition, resolve_parts
from server.auth import Caller
from server.errors import Conflict, InvalidRequest, QuotaExceeded, Unavailable, rejected
from server.gate.gate import CHECKABLE, Gate
from server.workers import Workers

log = logging.getLogger(__name__)

MAX_REFUSED = 256
"""How many compositions that the gate has refused are remembered, so that none is made again."""

_Key = tuple[str, str]
"""A tenant, and what the composition is known by."""


class OnRequest:
    """Finds the version of a composition for a request, and has it made if there is none."""

    def __init__(
        self,
        registry: Registry,
        gate: Gate,
        compositions: Compositions,
        base_name: str,
        kept_for: timedelta,
        wait_seconds: float,
        clock: Callable[[], datetime] = now,
    ) -> None:
        """`kept_for`: how long one is kept after its last use. `wait_seconds`: for the first."""
        self._registry, self._gate, self._compositions = registry, gate, compositions
        self._base_name, self._kept_for = base_name, kept_for
        self._wait_seconds, self._clock = wait_seconds, clock
        self._making: dict[_Key, asyncio.Task[VersionRecord]] = {}
        self._refused: OrderedDict[_Key, list[dict[str, Any]]] = OrderedDict()
        self._notes: dict[int, asyncio.Task[None]] = {}
        self._workers = Workers("composition-use", 1)

    def parts_of(
        self, model: str, caller: Caller, conversation: str | None
    ) -> tuple[WeightedVersion, ...]:
        """Return the versions that a request's `model` adds. Reads only the catalog in memory.

        Raises:
            InvalidRequest: it cannot be read, or its parts cannot be added.
            ModelNotFound, ModelIncompatible: a part is none that the tenant may use on this base.
        """
        catalog = self._registry.catalog
        tenant = catalog.tenants.get(caller.tenant)
        if tenant is None:
            raise no_tenant(caller.tenant)
        named = parse_composition(model)
        try:
            return resolve_parts(
                named, tenant, catalog, self._base_name, conversation, is_split_drawn=True
            )
        except CannotCompose as error:
            raise InvalidRequest(str(error), param="model") from None

    def known(self, parts: tuple[WeightedVersion, ...], tenant: str) -> VersionRecord | None:
        """Return the ready version that is the sum of these parts, None if none was made yet."""
        return self._find(tenant, key_of(parts))

    async def version(self, parts: tuple[WeightedVersion, ...], tenant: str) -> VersionRecord:
        """Return the ready version that is the sum of these parts. The first request has it made.

        Raises:
            QuotaExceeded: the tenant has as many compositions as it may have.
            Rejected: the gate refuses the sum.
            InvalidRequest: its rank is too large, or the server cannot compute it.
            Unavailable: it is not ready yet.
        """
        key = tenant, key_of(parts)
        known = self._find(*key)
        if known is not None:
            self._note_use(known)
            return known
        if key in self._refused:
            raise rejected(self._refused[key])
        making = self._making.get(key) or self._begin(key, parts)
        # Shielded, because other requests may wait for the same composition.
        done, _ = await asyncio.wait([making], timeout=self._wait_seconds)
        if not done:
            raise Unavailable("the composition is still being made and checked: try again")
        try:
            return making.result()
        except CannotCompose as error:
            raise InvalidRequest(str(error), param="model") from error

    def _begin(self, key: _Key, parts: tuple[WeightedVersion, ...]) -> asyncio.Task[VersionRecord]:
        tenant, _ = key
        self._require_room(tenant)
        context = Context()  # the smoke test is no part of the request: not of its meter or record
        context.run(current_actor.set, current_actor.get())
        making = asyncio.create_task(self._make(key, parts), context=context)
        self._making[key] = making

        def end(task: asyncio.Task[VersionRecord]) -> None:
            del self._making[key]
            if not task.cancelled():
                task.exception()  # seen: perhaps nobody waits for it any more

        making.add_done_callback(end)
        return making

    async def _make(self, key: _Key, parts: tuple[WeightedVersion, ...]) -> VersionRecord:
        tenant, _ = key
        wanted = Wanted(tenant, ON_REQUEST_NAME, parts, is_on_request=True)
        version, _ = await self._compositions.make(wanted)
        if version.state in CHECKABLE:
            self._gate.start(version)
            version = await self._gate.verdict(version)
        if version.state is VersionState.READY:
            return version
        self._refused[key] = version.reasons
        while len(self._refused) > MAX_REFUSED:
            self._refused.popitem(last=False)
        raise rejected(version.reasons)

    def _find(self, tenant: str, key: str) -> VersionRecord | None:
        adapter = self._registry.catalog.adapters.get((tenant, ON_REQUEST_NAME))
        for version in adapter.ready.values() if adapter else ():
            if composed_of(version.metadata).get("key") == key:
                return version
        return None

    def _require_room(self, tenant: str) -> None:
        """Raise `QuotaExceeded` unless the tenant may have one more composition on request."""
        catalog = self._registry.catalog
        record = catalog.tenants.get(tenant)
        most = (record.quota if record else Quota()).compositions
        adapter = catalog.adapters.get((tenant, ON_REQUEST_NAME))
        versions = list(adapter.versions.values()) if adapter else []
        if not all(is_on_request(version.metadata) for version in versions):
            raise Conflict(
                f"the tenant {tenant} has an adapter of its own with the name {ON_REQUEST_NAME!r}, "
                "which is kept for compositions that requests name: delete it, or use "
                "`loraplex adapters compose`",
                param="model",
            )
        coming = sum(owner == tenant for owner, _ in self._making)
        under_check = {v.version_id for v in versions if v.state is not VersionState.READY}
        kept = len(versions) - min(len(under_check), coming)
        if kept + coming >= most:
            raise QuotaExceeded(
                f"the tenant {tenant} may have {most} compositions that requests name at a time, "
                f"and has {kept + coming}. Unused ones end after {self._kept_for}; an operator can "
                "raise the number (`loraplex tenants quota --compositions`), and "
                "`loraplex adapters compose` makes one that stays",
                param="model",
            )

    def _note_use(self, version: VersionRecord) -> None:
        """Record that a composition is used, in the background and not at each request."""
        at, last_used = self._clock(), used_at(version.metadata)
        if last_used is not None and at - last_used < NOTED_SHARE * self._kept_for:
            return
        if version.version_id not in self._notes:
            note = asyncio.create_task(self._record_use(version, at))
            self._notes[version.version_id] = note
            note.add_done_callback(lambda _: self._notes.pop(version.version_id))

    async def _record_use(self, version: VersionRecord, at: datetime) -> None:
        try:
            await self._workers.run(self._registry.apply, note_use, version.version_id, at)
        except (RegistryError, SQLAlchemyError) as error:
            log.warning("the use of %s is not recorded now: %s", version.public_name, error)
