"""What a registration writes: the version's record, and with it, at once, its files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from adapters_registry.check.companions.serving_defaults import listed
from adapters_registry.compatibility import ALLOW_BASE_MISMATCH, allow_base_mismatch, state_on
from adapters_registry.composition.metadata import COMPOSED, FIT_RANK, FITTED
from adapters_registry.content.store import ContentStore
from adapters_registry.errors import InvalidMetadata
from adapters_registry.garbage import NEEDS_CONTENT
from adapters_registry.names import LIVE
from adapters_registry.records import reservations
from adapters_registry.records.aliases import point
from adapters_registry.records.catalog import VersionRecord, version_record
from adapters_registry.records.change import Change
from adapters_registry.records.database import database_time
from adapters_registry.records.idempotency import (
    Idempotency,
    find_result,
    fingerprint_of,
    keep_result,
)
from adapters_registry.records.tables import UNDER_CHECK, Adapter, Version, VersionState
from adapters_registry.records.tenants import require_tenant

MAX_METADATA_BYTES = 16 << 10
"""Every server keeps the metadata of all versions in memory."""
LEFT_OUT = "left_out"
"""The entry of a version's metadata that says what of its files was not kept."""
ARTIFACT = "artifact"
"""The entry that says which artefact of a registry the files came from."""
SIGNATURE = "signature"
"""The entry that says who has signed the files."""
RESERVED = (LEFT_OUT, COMPOSED, FITTED, ARTIFACT, SIGNATURE)
"""Entries of a version's metadata that only the server writes."""


@dataclass(frozen=True)
class Registration:
    """What a client asks to register, apart from the files.

    Raises:
        InvalidMetadata: the metadata is over `MAX_METADATA_BYTES` as JSON.
    """

    tenant: str
    name: str
    source: str
    promote: bool
    metadata: dict[str, Any]
    made: dict[str, Any] = field(default_factory=dict)
    """What the server itself adds to the metadata, under names of `RESERVED`."""
    left_out: tuple[str, ...] = ()
    """Files that stood beside the adapter's and are not kept, as `adapter_files` chooses them."""

    def __post_init__(self) -> None:
        check_metadata(self.metadata)


def check_metadata(metadata: dict[str, Any]) -> None:
    """Raise `InvalidMetadata` if the metadata is over `MAX_METADATA_BYTES` as JSON."""
    size_bytes = len(json.dumps(metadata).encode())
    if size_bytes > MAX_METADATA_BYTES:
        raise InvalidMetadata(
            f"metadata has {size_bytes:,} bytes as JSON; at most {MAX_METADATA_BYTES:,} are kept"
        )


@dataclass(frozen=True)
class StagedFiles:
    """An adapter's files, sealed in a staging directory, with digest and size in bytes."""

    directory: Path
    digest: str
    size_bytes: int
    came_as: str
    """The digest of what was registered; another one if copies of the base were left out of it."""
    left_out: list[str]
    """The keys of those copies."""
    signed_by: dict[str, str] | None = None
    """Who has signed them, if that was verified."""

    def noted(self, other_files: Sequence[str]) -> dict[str, Any]:
        """Return what the version's metadata keep: what was left out, and who has signed."""
        noted: dict[str, Any] = {}
        if self.left_out:
            noted = {"copies_of_the_base": self.left_out, "digest": self.came_as}
        if other_files:
            noted["files"] = [name[:100] for name in other_files]
        signed = {SIGNATURE: self.signed_by} if self.signed_by else {}
        return signed | ({LEFT_OUT: noted} if noted else {})


def left_out_of(metadata: dict[str, Any]) -> list[str]:
    """Return the warnings of what was left out of a version's files."""
    noted = metadata.get(LEFT_OUT)
    if not isinstance(noted, dict):
        return []
    warnings = []
    if isinstance(copies := noted.get("copies_of_the_base"), list):
        text = ", ".join(copies)
        warnings.append(f"copies of the base's own tensors were left out of the file: {text}")
    if isinstance(files := noted.get("files"), list):
        warnings.append(f"files that the server has no use for were left out: {listed(files)}")
    return warnings


def add_registration(
    change: Change,
    content: ContentStore,
    asked: Registration,
    files: StagedFiles,
    idempotency: Idempotency | None,
) -> tuple[VersionRecord, bool]:
    """Add the adapter's next version and publish its files. Returns it, and whether it is new.

    If the adapter has a version with the same content already, that version is returned.

    Raises:
        NotFound: the tenant is gone.
        QuotaExceeded: the tenant may have no more.
        KeyReused: the idempotency key came with another request before.
    """
    tenant, name, digest = asked.tenant, asked.name, files.digest
    fingerprint = fingerprint_of(
        "register", tenant, name, files.came_as, asked.promote, asked.metadata
    )
    require_tenant(change, tenant)  # it may have gone meanwhile
    done = find_result(change, idempotency, fingerprint) if idempotency else None
    if done is not None:
        version = change.session.get_one(Version, done.version_id)
        _check_on_this_base(change, version, asked)
        return _published(change, content, files, version), False
    found = find_same_content(change, tenant, name, digest)
    version = found or _next_version(change, asked, files)
    if found:
        _check_on_this_base(change, found, asked)
        _note_signature(change, found, files)
    if found and asked.promote:
        found.promote, found.live_revision = True, found.adapter.live_revision
        found.adapter.epoch = change.epoch
        if state_on(found, change.base) is VersionState.READY:
            point(change, found.adapter, LIVE, [[found.number, 100]])
    change.session.flush()
    if idempotency:
        keep_result(change, idempotency, fingerprint, version.id)
        change.session.flush()
    return _published(change, content, files, version), found is None


def _check_on_this_base(change: Change, found: Version, asked: Registration) -> None:
    """Have a version that is incompatible with this base checked on it; the gate comes next."""
    if state_on(found, change.base) is not VersionState.INCOMPATIBLE:
        return
    if found.state in UNDER_CHECK:
        found.base = change.base.fingerprint
    if asked.metadata.get(ALLOW_BASE_MISMATCH) is True:
        allow_base_mismatch(found)
    if asked.metadata.get(FIT_RANK) is True:
        found.details = {**(found.details or {}), FIT_RANK: True}
    found.adapter.epoch = change.epoch


def _note_signature(change: Change, found: Version, files: StagedFiles) -> None:
    """Record who has signed files that were registered before without a signature."""
    signed_by, details = files.signed_by, found.details or {}
    if signed_by is None or details.get(SIGNATURE) == signed_by:
        return
    found.details = {**details, SIGNATURE: signed_by}
    found.adapter.epoch = change.epoch
    change.log("version.sign", found.adapter, str(found.number), None, _signed_entry(signed_by))


def _signed_entry(signed_by: dict[str, str]) -> dict[str, str]:
    """Return what the audit trail says of a signature: the signer, and which key or issuer."""
    apart = {key: value for key, value in signed_by.items() if key in ("fingerprint", "issuer")}
    return {"signed_by": signed_by["signer"], **apart}


def _published(
    change: Change, content: ContentStore, files: StagedFiles, version: Version
) -> VersionRecord:
    """Publish the files and return the version's record. Nothing can refuse it after this step."""
    if version.state in NEEDS_CONTENT:
        content.publish(files.directory, files.digest)
    return version_record(version, change.base)


def _next_version(change: Change, asked: Registration, files: StagedFiles) -> Version:
    reservations.check_quota(change, asked.tenant, asked.name, files.size_bytes)
    version = _add_version(change, asked.tenant, asked.name, files.digest, files.size_bytes)
    own = {key: value for key, value in asked.metadata.items() if key not in RESERVED}
    noted = files.noted(asked.left_out)
    version.source, version.details = asked.source[:1024], own | asked.made | noted
    version.promote, version.live_revision = asked.promote, version.adapter.live_revision
    version.base = change.base.fingerprint
    state = VersionState.PENDING
    after = {"state": state, "digest": files.digest, "source": version.source}
    if files.signed_by:
        after |= _signed_entry(files.signed_by)
    change.log("version.register", version.adapter, str(version.number), None, after)
    return version


def find_same_content(change: Change, tenant: str, name: str, digest: str) -> Version | None:
    """Return the version of this adapter with the same content that is or may become ready."""
    adapter = change.find_adapter(tenant, name)
    gone = (VersionState.REJECTED, VersionState.RETIRED)
    if adapter is None:
        return None
    same = select(Version).where(Version.adapter_id == adapter.id, Version.digest == digest)
    return change.session.scalar(same.where(Version.state.not_in(gone)).limit(1))


def _add_version(change: Change, tenant: str, name: str, digest: str, size_bytes: int) -> Version:
    adapter = change.find_adapter(tenant, name)
    if adapter is None:
        earlier = select(func.max(Adapter.last_number)).where(
            Adapter.tenant == tenant, Adapter.name == name
        )
        last_number = change.session.scalar(earlier) or 0
        adapter = Adapter(tenant=tenant, name=name, last_number=last_number, live_revision=0)
        change.session.add(adapter)
    adapter.epoch = change.epoch
    adapter.last_number += 1
    version = Version(
        adapter=adapter,
        number=adapter.last_number,
        digest=digest,
        size_bytes=size_bytes,
        state=VersionState.PENDING,
        created_at=database_time(change.session),
    )
    change.session.add(version)
    return version
