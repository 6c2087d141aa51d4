"""The gate: decides whether a registered version may serve, from its files and by trying it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from functools import partial

from sqlalchemy.exc import SQLAlchemyError

from adapters_registry.check.static_check import AdapterFacts
from adapters_registry.errors import AdapterRejected, CheckedElsewhere, Reason, RegistryError
from adapters_registry.records.catalog import VersionRecord
from adapters_registry.records.tables import UNDER_CHECK, VersionState
from adapters_registry.registry import Registry
from adapters_registry.verdicts import LEASE
from server.engine.interface import Engine
from server.errors import APIError, NotLoadable, Unavailable
from server.gate.smoke_test import SmokeTrial, try_out
from server.residency.leases import Leases
from server.workers import Workers

log = logging.getLogger(__name__)

MAX_SMOKE_TESTS = 2
"""How many smoke tests run at a time. Each takes a slot that requests could use."""
RETRY_SECONDS = 0.25
MAX_FILE_CHECKS = 4
"""How many checks of files run at a time. Some wait for a download."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 60.0
"""The pause before a postponed check is tried again. It doubles each time."""
ELSEWHERE_SECONDS = 1.0
"""How often to look if another server has decided."""
TAKE_UP_SECONDS = 15.0
MAX_DEATHS = 2
"""How often the engine may die during a version's smoke test before the version is rejected."""
MAX_REFUSALS = 2
"""How often the engine may fail to load a version before the version is rejected."""


CHECKABLE = (*UNDER_CHECK, VersionState.INCOMPATIBLE)


@dataclass
class _Check:
    """A check that runs, and what callers that wait for the verdict are told meanwhile."""

    task: asyncio.Task[VersionRecord]
    answer: asyncio.Future[VersionRecord]
    """The version with its verdict, or the reason why the check was postponed."""
    again: asyncio.Event
    """Set to end the pause of a postponed check."""


class Gate:
    """Checks versions. Each is checked once, however many callers wait for its verdict."""

    def __init__(self, registry: Registry, engine: Engine, leases: Leases) -> None:
        self._registry = registry
        self._engine = engine
        self._leases = leases
        self._checks: dict[int, _Check] = {}
        self._smoke_tests = asyncio.Semaphore(MAX_SMOKE_TESTS)
        self._suspects = asyncio.Lock()
        self._workers = Workers("gate", MAX_FILE_CHECKS)
        # Threads of its own: checks that wait for a download must not keep others from a verdict.
        self._records = Workers("verdicts", 2)

    def start(self, version: VersionRecord) -> None:
        """Begin to check a version that has no verdict yet; a check that was put off goes on.

        One that is incompatible with this base is checked on it again.
        """
        check = self._checks.get(version.version_id)
        if check is None:
            again, answer = asyncio.Event(), asyncio.get_running_loop().create_future()
            task = asyncio.create_task(self._check(version))
            self._checks[version.version_id] = _Check(task, answer, again)
            task.add_done_callback(partial(self._end, version))
        elif check.answer.done():
            check.answer = asyncio.get_running_loop().create_future()
            check.again.set()

    async def take_up(self, interval_seconds: float = TAKE_UP_SECONDS) -> None:
        """Check regularly what no server checks, after a crash or a postponed check."""
        while True:
            try:
                for version in await self._records.run(self._registry.unfinished):
                    if version.version_id not in self._checks:
                        self.start(version)
            except SQLAlchemyError as error:
                log.warning("unfinished checks cannot be looked for now: %s", error)
            await asyncio.sleep(interval_seconds)

    async def verdict(self, version: VersionRecord) -> VersionRecord:
        """Wait for a check that runs, and return the version with its verdict.

        A version that is not being checked is returned as it is.

        Raises:
            APIError, RegistryError, SQLAlchemyError: the check was postponed, and continues later.
        """
        check = self._checks.get(version.version_id)
        # Shielded, because a client that disconnects must not cancel the check.
        return await asyncio.shield(check.answer) if check else version

    def _end(self, version: VersionRecord, task: asyncio.Task[VersionRecord]) -> None:
        check = self._checks.pop(version.version_id)
        if check.answer.done():
            return
        if task.cancelled():
            check.answer.cancel()
        else:
            check.answer.set_result(task.result())

    async def _check(self, version: VersionRecord) -> VersionRecord:
        """Decide on a version, or wait until another server has.

        Only `AdapterRejected` and the smoke test's reasons are verdicts. Any other failure is one
        of this server or of what it depends on. The check is then released, so that any server may
        take it, and tried again after a pause.
        """
        pause_seconds = FIRST_PAUSE_SECONDS
        while version.state in CHECKABLE:
            try:
                async with self._lease_renewed(version):
                    return await self._decide(version)
            except CheckedElsewhere:
                await asyncio.sleep(ELSEWHERE_SECONDS)
                version = await self._reread(version)
            except Exception as error:
                log.warning("the check of %s is put off: %r", version.public_name, error)
                version = await self._put_off(version, error, pause_seconds)
                pause_seconds = min(2 * pause_seconds, LONGEST_PAUSE_SECONDS)
        return version

    async def _decide(self, version: VersionRecord) -> VersionRecord:
        """Check the files, then try the version on the engine, and record the verdict."""
        try:
            facts = await self._workers.run(self._registry.check_files, version)
        except AdapterRejected as rejection:
            reasons = rejection.reasons
        else:
            reasons, facts = await self._try_out(version, facts)
            if not reasons:
                accepted = await self._records.run(self._registry.accept, version, facts)
                self._leases.follow(self._registry.catalog)  # it may have been promoted
                return accepted
        return await self._records.run(self._registry.reject, version, reasons)

    async def _put_off(
        self, version: VersionRecord, error: Exception, pause_seconds: float
    ) -> VersionRecord:
        """Release the check, tell callers that wait, and return the version after a pause."""
        try:
            await self._records.run(self._registry.release_check, version)
        except (RegistryError, SQLAlchemyError) as failure:
            log.warning("the lease on %s runs out by itself: %s", version.public_name, failure)
        check = self._checks[version.version_id]
        check.again.clear()
        if not check.answer.done():
            check.answer.set_exception(_told(version, error))
            check.answer.exception()  # seen: perhaps nobody waits for it
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_seconds):
                await check.again.wait()
        return await self._reread(version)

    async def _reread(self, version: VersionRecord) -> VersionRecord:
        """Return the version from the database, or as it was known if that cannot be read."""
        try:
            return (
                await self._records.run(self._registry.read_version, version.version_id) or version
            )
        except SQLAlchemyError:
            return version

    @contextlib.asynccontextmanager
    async def _lease_renewed(self, version: VersionRecord) -> AsyncIterator[None]:
        """Renew this server's lease on the check for as long as the context is open."""

        async def renew() -> None:
            while True:
                await asyncio.sleep(LEASE.total_seconds() / 3)
                with contextlib.suppress(SQLAlchemyError):  # whoever decides looks once more
                    await self._records.run(self._registry.renew_check, version)

        renewing = asyncio.create_task(renew())
        try:
            yield
        finally:
            renewing.cancel()

    async def _try_out(
        self, version: VersionRecord, facts: AdapterFacts
    ) -> tuple[list[Reason], AdapterFacts]:
        """Return the smoke test's reasons, as soon as the engine can say, and what it has found.

        A version whose rank is over the engine's limit is not tried, since it is not offered here.
        If the engine dies during the test, the version is tried again without other tests beside
        it, and rejected if the engine dies again. A version that the engine cannot load is also
        tried once more, because the disk may have caused the failure.
        """
        if facts.rank > self._registry.base.max_rank:
            return [], facts
        num_deaths = num_refusals = 0
        while num_deaths < MAX_DEATHS:
            await self._until_ready()
            async with self._suspects if num_deaths else self._smoke_tests:
                generation = self._engine.generation
                try:
                    trial = await self._smoke_test(version)
                    return trial.reasons, replace(facts, logprob_change=trial.logprob_change)
                except NotLoadable as error:
                    num_refusals += 1
                    if num_refusals == MAX_REFUSALS:
                        return [Reason("canary_not_loadable", error.message)], facts
                except Unavailable as error:
                    log.warning("the smoke test of %s is put off: %s", version.public_name, error)
            await asyncio.sleep(RETRY_SECONDS)
            num_deaths += not self._is_up(generation)
        message = "the engine died each time this adapter was tried"
        return [Reason("canary_engine_died", message)], facts

    async def _smoke_test(self, version: VersionRecord) -> SmokeTrial:
        path = self._registry.content.path(version.digest)
        async with self._leases.lease(version, version.tenant):
            trial = await try_out(self._engine, version, path)
        if trial.reasons:
            await self._leases.drain(version)
        return trial

    async def _until_ready(self) -> None:
        while not self._is_up(self._engine.generation):
            await asyncio.sleep(RETRY_SECONDS)

    def _is_up(self, generation: int) -> bool:
        """Return whether the engine answers and still has this generation."""
        try:
            self._engine.require_ready()
        except Unavailable:
            return False
        return self._engine.generation == generation


def _told(version: VersionRecord, error: Exception) -> Exception:
    """Return the error for callers that wait, when a check is postponed."""
    if isinstance(error, APIError | RegistryError | SQLAlchemyError):
        return error
    message = f"{version.public_name} cannot be checked now; the server tries again by itself"
    return Unavailable(message)
