"""Registering a version. Every reason to refuse it that is known early is checked before a write.

First names, tenant and quota are checked, and the quota is reserved. Then the files are staged and
sealed. Then one transaction records the version and publishes its files. The gate comes after that.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from adapters_registry.content.store import ContentStore
from adapters_registry.errors import (
    InsufficientStorage,
    InvalidMetadata,
    QuotaExceeded,
    RegistryError,
    StoreUnavailable,
)
from adapters_registry.garbage import (
    NEEDS_CONTENT,
    Records,
    collect_garbage,
    drop_content,
    uncollected_digests,
)
from adapters_registry.names import LIVE, check_name
from adapters_registry.records import reservations
from adapters_registry.records.aliases import point
from adapters_registry.records.catalog import VersionRecord, version_record
from adapters_registry.records.change import Change
from adapters_registry.records.idempotency import (
    Idempotency,
    find_result,
    fingerprint_of,
    is_known,
    keep_result,
)
from adapters_registry.records.tables import Adapter, Version, VersionState
from adapters_registry.records.tenants import no_tenant, require_tenant

log = logging.getLogger(__name__)

T = TypeVar("T")

MAX_METADATA_BYTES = 16 << 10
"""Metadata is bounded because every server keeps the metadata of all versions in memory."""


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

    def __post_init__(self) -> None:
        check_metadata(self.metadata)


def check_metadata(metadata: dict[str, Any]) -> None:
    """Raise `InvalidMetadata` if the metadata is over `MAX_METADATA_BYTES` as JSON."""
    size_bytes = len(json.dumps(metadata).encode())
    if size_bytes > MAX_METADATA_BYTES:
        raise InvalidMetadata(
            f"metadata has {size_bytes:,} bytes as JSON; at most {MAX_METADATA_BYTES:,} are kept"
        )


class Intake:
    """One running registration, with an empty directory for its files and what it has reserved.

    Call `admit` first, then `reserve_disk` before the files are written, then `commit`.
    """

    def __init__(self, records: Records, directory: Path) -> None:
        self.directory = directory
        self._records = records
        self._reservation: str | None = None
        self._refusal: QuotaExceeded | None = None  # set: only known files may come
        self._tenant, self._reserved_bytes, self._known_bytes = "", 0, 0

    def admit(
        self, tenant: str, name: str, size_bytes: int = 0, idempotency: Idempotency | None = None
    ) -> None:
        """Check the name, the tenant and the quota, and reserve the quota.

        `size_bytes` is what is known of the files' size so far. A repetition with a known
        idempotency key reserves nothing: most often it adds nothing. Over quota, files no larger
        than this adapter's largest version may be known ones: `commit` refuses them if they aren't.

        Raises:
            InvalidName, NotFound: the name is not allowed, or there is no such tenant.
            QuotaExceeded: the tenant may have no more.
        """
        check_name(name, "adapter")
        catalog, content = self._records.catalog, self._records.content
        known = catalog.tenants.get(check_name(tenant, "tenant"))
        if known is None:
            raise no_tenant(tenant)
        self._tenant, self._reserved_bytes = tenant, size_bytes
        if not reservations.limits_storage(known.quota) and content.origin is None:
            return

        def reserve(change: Change) -> str | None:
            if idempotency is not None and is_known(change, idempotency):
                return None
            return reservations.reserve(change, tenant, name, size_bytes, self._records.server_id)

        try:
            self._reservation = self._within_quota(reserve)
        except QuotaExceeded as refusal:
            adapter = catalog.adapters.get((tenant, name))
            self._known_bytes = adapter.largest_bytes if adapter else 0
            if size_bytes > self._known_bytes or not self._known_bytes:
                raise
            self._refusal = refusal

    def reserve_quota(self, size_bytes: int) -> None:
        """Reserve quota for files of `size_bytes` in all, if that is more than was announced.

        Raises:
            QuotaExceeded: the tenant may have no more.
        """
        if self._refusal and size_bytes > self._known_bytes:
            raise self._refusal
        if (reservation := self._reservation) and size_bytes > self._reserved_bytes:
            self._within_quota(lambda change: reservations.enlarge(change, reservation, size_bytes))
            self._reserved_bytes = size_bytes

    def reserve_disk(self, num_bytes: int) -> None:
        """Reserve disk budget for `num_bytes` in all. Garbage is collected if there is no room.

        Raises:
            InsufficientStorage: there is still no room after the collection.
            StoreUnavailable: the origin does not answer.
        """
        content = self._records.content
        try:
            content.reserve(self.directory, num_bytes)
        except InsufficientStorage:
            with self._records.change() as change:
                collect_garbage(change, content)
            content.reserve(self.directory, num_bytes)

    def commit(
        self, asked: Registration, idempotency: Idempotency | None = None
    ) -> tuple[VersionRecord, bool]:
        """Record the next version of an adapter, and publish the files in the directory.

        Returns the version, in state `pending`, and True. If the adapter has a version with the
        same content already, returns that version and False. If the registration fails, none of its
        files stay, here or at the origin.

        Raises:
            FileNotFoundError: one of the two files is missing.
            QuotaExceeded, InsufficientStorage, StoreUnavailable, NotFound: as before.
            KeyReused: the idempotency key came with another request before.
        """
        content = self._records.content
        digest, size_bytes = content.seal(self.directory)
        self.reserve_disk(size_bytes)
        files = StagedFiles(self.directory, digest, size_bytes)

        def record(change: Change) -> tuple[VersionRecord, bool]:
            if self._reservation:
                reservations.release(change, self._reservation)
            return add_registration(change, content, asked, files, idempotency)

        try:
            if self._refusal:
                self._require_known(asked, digest, self._refusal)
            self._put_to_origin(files)
            version, is_new = self._within_quota(record)
        except BaseException as error:
            self._drop(digest, at_origin=not isinstance(error, StoreUnavailable))
            raise
        self._reservation = None
        if version.state not in NEEDS_CONTENT:
            self._drop(digest)
        return version, is_new

    def end(self) -> None:
        """Give back the quota that is still reserved."""
        if self._reservation:
            with self._records.change() as change:
                reservations.release(change, self._reservation)
            self._reservation = None

    def _require_known(self, asked: Registration, digest: str, refusal: QuotaExceeded) -> None:
        with self._records.change() as change:
            if _same_content(change, asked.tenant, asked.name, digest) is None:
                raise refusal

    def _put_to_origin(self, files: StagedFiles) -> None:
        origin = self._records.content.origin
        if origin is None:
            return
        if self._reservation:
            with self._records.change() as change:
                reservations.protect(change, self._reservation, files.digest)
        origin.put(files.digest, files.directory)

    def _drop(self, digest: str, *, at_origin: bool = True) -> None:
        """Remove the files of a failed registration. If that fails, a collection does it later."""
        try:
            self.end()
            drop_content(self._records, [digest], at_origin=at_origin)
        except (SQLAlchemyError, RegistryError) as error:
            log.warning("files of a refused registration stay for now: %s", error)

    def _within_quota(self, do: Callable[[Change], T]) -> T:
        """Run an operation that needs quota. If it is short, remove old files and run it again."""
        try:
            with self._records.change() as change:
                return do(change)
        except QuotaExceeded:
            with self._records.change() as change:
                garbage = uncollected_digests(change.session, self._tenant)
            if not garbage:
                raise
            drop_content(self._records, garbage)
            with self._records.change() as change:
                return do(change)


@contextmanager
def open_intake(records: Records) -> Iterator[Intake]:
    """Open a registration. At the end its directory is removed and its reservations end.

    Raises `InsufficientStorage` if the disk was full for anything done within the context.
    """
    with records.content.staging() as directory:
        intake = Intake(records, directory)
        try:
            yield intake
        finally:
            with suppress(SQLAlchemyError, RegistryError):  # it ends by itself after some time
                intake.end()


@dataclass(frozen=True)
class StagedFiles:
    """An adapter's two files, sealed in a staging directory, with digest and size in bytes."""

    directory: Path
    digest: str
    size_bytes: int


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
    fingerprint = fingerprint_of("register", tenant, name, digest, asked.promote, asked.metadata)
    require_tenant(change, tenant)  # it may have gone meanwhile
    done = find_result(change, idempotency, fingerprint) if idempotency else None
    if done is not None:
        version = change.session.get_one(Version, done.version_id)
        return _published(content, files, version), False
    found = _same_content(change, tenant, name, digest)
    version = found or _next_version(change, asked, files)
    if found and asked.promote:
        found.promote, found.live_revision = True, found.adapter.live_revision
        found.adapter.epoch = change.epoch
        if found.state == VersionState.READY:
            point(change, found.adapter, LIVE, [[found.number, 100]])
    change.session.flush()
    if idempotency:
        keep_result(change, idempotency, fingerprint, version.id)
        change.session.flush()
    return _published(content, files, version), found is None


def _published(content: ContentStore, files: StagedFiles, version: Version) -> VersionRecord:
    """Publish the files and return the version's record. Nothing can refuse it after this step."""
    if version.state in NEEDS_CONTENT:
        content.publish(files.directory, files.digest)
    return version_record(version)


def _next_version(change: Change, asked: Registration, files: StagedFiles) -> Version:
    reservations.check_quota(change, asked.tenant, asked.name, files.size_bytes)
    version = _add_version(change, asked.tenant, asked.name, files.digest, files.size_bytes)
    version.source, version.details = asked.source[:1024], asked.metadata
    version.promote, version.live_revision = asked.promote, version.adapter.live_revision
    state = VersionState.PENDING
    after = {"state": state, "digest": files.digest, "source": version.source}
    change.log("version.register", version.adapter, str(version.number), None, after)
    return version


def _same_content(change: Change, tenant: str, name: str, digest: str) -> Version | None:
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
    )
    change.session.add(version)
    return version
