"""Registrations by request: refused early, staged and recorded, with threads for each tenant."""

from __future__ import annotations

import json
from typing import Any

from fastapi import Request
from fastapi.concurrency import contextmanager_in_threadpool

from adapters_registry.compatibility import ALLOW_BASE_MISMATCH
from adapters_registry.composition.metadata import FIT_RANK
from adapters_registry.recording import Registration
from adapters_registry.records.catalog import VersionRecord
from adapters_registry.records.idempotency import Idempotency
from adapters_registry.registration import Intake
from adapters_registry.registry import Registry
from adapters_registry.sources import Access, find_source
from server.api.admin.registration import RegistrationBody, from_form, from_json
from server.api.admin.upload import Fields, Uploads, receive_upload
from server.auth import Caller
from server.settings import Settings
from server.workers import Workers

_MIB = 1 << 20
MAX_DOWNLOADS = 8
"""How many sources are read at a time, from a hub, a bucket or a path."""
MAX_COMMITS = 8
"""How many registrations reserve, hash, flush or record at a time. Downloads are not counted."""
PER_TENANT = 2
"""How many of each kind one tenant has at a time. Its further ones wait."""


class Intakes:
    """Registers adapters from sources that the server reads and from uploads."""

    def __init__(self, registry: Registry, settings: Settings) -> None:
        self._registry, self._settings = registry, settings
        self._max_bytes = settings.max_adapter_mib * _MIB
        self._downloads = Workers("download", MAX_DOWNLOADS, per_tenant=PER_TENANT)
        self._commits = Workers("commit", MAX_COMMITS, per_tenant=PER_TENANT)
        self._uploads = Uploads(settings.max_uploads)

    async def take_in(
        self, request: Request, idempotency: Idempotency | None
    ) -> tuple[VersionRecord, bool]:
        """Register what a request asks for. Returns the version, and whether it is new.

        What it asks for is then in `request.state.registration`.

        Raises:
            APIError: the caller may not register, or the body cannot be understood.
            RegistryError: as in `Intake`, or the source cannot be read.
        """
        caller: Caller = request.state.caller
        if request.headers.get("content-type", "").startswith("multipart/form-data"):
            with self._uploads.running(caller.tenant):
                return await self._from_upload(request, caller, idempotency)
        asked = from_json(await request.body(), caller, self._settings.served_base_name)
        request.state.registration = asked
        return await self.register_from_source(asked, idempotency)

    async def register_source(
        self, asked: dict[str, Any], caller: Caller
    ) -> tuple[VersionRecord, bool]:
        """Register what the JSON body of a registration says. As `take_in`."""
        body = json.dumps(asked).encode()
        registration = from_json(body, caller, self._settings.served_base_name)
        return await self.register_from_source(registration, None)

    async def _from_upload(
        self, request: Request, caller: Caller, idempotency: Idempotency | None
    ) -> tuple[VersionRecord, bool]:
        settings = self._settings
        async with contextmanager_in_threadpool(self._registry.intake()) as intake:
            admission = _Admission(
                self._commits, intake, caller, settings.served_base_name, idempotency
            )
            fields, left_out = await receive_upload(
                request, intake.directory, admission, self._max_bytes, settings.upload_seconds
            )
            asked = await admission.finish(fields)
            request.state.registration = asked
            return await self._commit(intake, asked, "upload", left_out, idempotency)

    async def register_from_source(
        self, asked: RegistrationBody, idempotency: Idempotency | None = None
    ) -> tuple[VersionRecord, bool]:
        """Register from a source that may be read. Returns the version, and whether it is new.

        Raises:
            RegistryError: as in `Intake`, or the source cannot be read.
        """
        tenant = _tenant_of(asked)
        async with contextmanager_in_threadpool(self._registry.intake()) as intake:
            await self._commits.run_for(tenant, intake.admit, tenant, asked.name, 0, idempotency)
            source = await self._downloads.run_for(
                tenant, find_source, asked.source, self._access(intake)
            )
            await self._commits.run_for(tenant, intake.reserve_quota, source.size_bytes)
            await self._commits.run_for(tenant, intake.reserve_disk, source.size_bytes)
            await self._downloads.run_for(tenant, source.stage, intake.directory)
            return await self._commit(
                intake, asked, source.name, source.left_out, idempotency, source.details
            )

    def _access(self, intake: Intake) -> Access:
        """Return what may be read for a registration, which grows with the files of archives."""
        settings = self._settings

        def grow(size_bytes: int) -> None:
            intake.reserve_quota(size_bytes)
            intake.reserve_disk(size_bytes)

        return Access(
            settings.local_roots,
            self._max_bytes,
            settings.oci_registries,
            settings.oci_auth_file,
            grow,
        )

    async def _commit(
        self,
        intake: Intake,
        asked: RegistrationBody,
        source: str,
        left_out: tuple[str, ...],
        idempotency: Idempotency | None,
        details: dict[str, Any] | None = None,
    ) -> tuple[VersionRecord, bool]:
        flags = {ALLOW_BASE_MISMATCH: asked.allow_base_mismatch, FIT_RANK: asked.fit_rank}
        chosen = {flag: True for flag, is_chosen in flags.items() if is_chosen}
        tenant, metadata = _tenant_of(asked), asked.metadata | chosen
        record = Registration(
            tenant,
            asked.name,
            source,
            asked.promote,
            metadata,
            made=details or {},
            left_out=left_out,
        )
        return await self._commits.run_for(tenant, intake.commit, record, idempotency)


class _Admission:
    """Admits an upload as soon as its form names the adapter, and reserves what it needs."""

    def __init__(
        self,
        workers: Workers,
        intake: Intake,
        caller: Caller,
        base_name: str,
        idempotency: Idempotency | None,
    ) -> None:
        self._workers, self._intake = workers, intake
        self._caller, self._base_name, self._idempotency = caller, base_name, idempotency
        self._admitted: RegistrationBody | None = None

    @property
    def is_admitted(self) -> bool:
        return self._admitted is not None

    async def admit(self, fields: Fields, size_bytes: int) -> None:
        """Admit the registration, if its name has arrived."""
        if "name" in fields:
            await self._admit(self._parse(fields), size_bytes)

    async def grow(self, size_bytes: int, disk_bytes: int) -> None:
        """Reserve more as the body arrives."""
        if self.is_admitted:
            await self._workers.run_for(self._caller.tenant, self._intake.reserve_quota, size_bytes)
        await self._workers.run_for(self._caller.tenant, self._intake.reserve_disk, disk_bytes)

    async def finish(self, fields: Fields) -> RegistrationBody:
        """Return the whole registration, admitted."""
        asked = self._parse(fields)
        if self._admitted is None:
            await self._admit(asked, 0)
        elif (asked.tenant, asked.name) != (self._admitted.tenant, self._admitted.name):
            await self._workers.run_for(self._caller.tenant, self._intake.end)
            await self._admit(asked, 0)  # a field after the files has changed tenant or name
        return asked

    async def _admit(self, asked: RegistrationBody, size_bytes: int) -> None:
        await self._workers.run_for(
            self._caller.tenant,
            self._intake.admit,
            _tenant_of(asked),
            asked.name,
            size_bytes,
            self._idempotency,
        )
        self._admitted = asked

    def _parse(self, fields: Fields) -> RegistrationBody:
        return from_form(fields, self._caller, self._base_name)


def _tenant_of(asked: RegistrationBody) -> str:
    assert asked.tenant is not None, "it was filled with the caller's own"
    return asked.tenant
