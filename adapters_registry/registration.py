"""Registering a version: from sealed files to a row in state `pending`."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters_registry.content.store import ContentStore
from adapters_registry.errors import StoreUnavailable
from adapters_registry.names import LIVE
from adapters_registry.records.aliases import point
from adapters_registry.records.catalog import VersionRecord, version_record
from adapters_registry.records.change import Change
from adapters_registry.records.idempotency import (
    Idempotency,
    find_result,
    fingerprint_of,
    keep_result,
)
from adapters_registry.records.tables import Adapter, Version, VersionState
from adapters_registry.records.tenants import check_room, require_tenant


@dataclass(frozen=True)
class Registration:
    """What a client asks to register, apart from the files."""

    tenant: str
    name: str
    source: str
    promote: bool
    metadata: dict[str, Any]


@dataclass(frozen=True)
class StagedFiles:
    """An adapter's two files in a staging directory, sealed; their digest and size in bytes."""

    directory: Path
    digest: str
    size_bytes: int


def add_registration(
    change: Change,
    content: ContentStore,
    asked: Registration,
    files: StagedFiles,
    once: Idempotency | None,
) -> tuple[VersionRecord, bool]:
    """Publish the files and add the adapter's next version; returns it, and whether it is new.

    Content that is a version of this adapter already is not doubled: that version is returned.

    Raises:
        NotFound: the tenant is gone.
        QuotaExceeded: the tenant may have no more.
        KeyReused: the idempotency key `once` came with another request before.
    """
    tenant, name, digest = asked.tenant, asked.name, files.digest
    fingerprint = fingerprint_of("register", tenant, name, digest, asked.promote, asked.metadata)
    require_tenant(change, tenant)  # it may have gone meanwhile
    content.publish(files.directory, digest)
    done = find_result(change, once, fingerprint) if once else None
    if done is not None:
        return version_record(change.session.get_one(Version, done.version_id)), False
    version = _same_content(change, tenant, name, digest)
    is_new = version is None
    if version is None:
        check_room(change, tenant, name, files.size_bytes)
        version = _add_version(change, tenant, name, digest, files.size_bytes)
        version.source, version.details = asked.source[:1024], asked.metadata
        version.promote, version.live_revision = asked.promote, version.adapter.live_revision
        after = {"digest": digest, "source": version.source}
        change.log("version.register", version.adapter, str(version.number), None, after)
    elif asked.promote:
        version.promote, version.live_revision = True, version.adapter.live_revision
        version.adapter.epoch = change.epoch
        if version.state == VersionState.READY:
            point(change, version.adapter, LIVE, [[version.number, 100]])
    change.session.flush()
    if once:
        keep_result(change, once, fingerprint, version.id)
    return version_record(version), is_new


def keep_at_origin(content: ContentStore, digest: str) -> None:
    """Put published files to the origin again, if another replica's collection removed them."""
    if content.origin:
        with suppress(StoreUnavailable, FileNotFoundError):  # gone here: evicted, so it's there
            content.origin.put(digest, content.path(digest))


def _same_content(change: Change, tenant: str, name: str, digest: str) -> Version | None:
    """The version of this adapter that has the same content and is, or may become, ready."""
    adapter = change.find_adapter(tenant, name)
    gone = (VersionState.REJECTED, VersionState.RETIRED)
    versions = adapter.versions if adapter and not adapter.deleted else []
    return next((v for v in versions if v.digest == digest and v.state not in gone), None)


def _add_version(change: Change, tenant: str, name: str, digest: str, size_bytes: int) -> Version:
    adapter = change.find_adapter(tenant, name)
    if adapter is None:
        adapter = Adapter(tenant=tenant, name=name, last_number=0, live_revision=0)
        change.session.add(adapter)
    adapter.epoch, adapter.deleted = change.epoch, False
    adapter.last_number += 1
    version = Version(
        adapter=adapter,
        number=adapter.last_number,
        digest=digest,
        size_bytes=size_bytes,
        state=VersionState.PENDING,
    )
    change.session.add(version)
    return version
