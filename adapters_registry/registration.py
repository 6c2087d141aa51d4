"""Registers a version. It is refused before anything is written if a reason is known by then.

First, names, tenant and quota are checked, and the quota is reserved. Then the files are staged and
sealed. Then one transaction records the version and publishes its files. The gate checks it later.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from sqlalchemy.exc import SQLAlchemyError

from adapters_registry.check.base_copies import drop, find_copies
from adapters_registry.composition.metadata import COMPOSED, FITTED
from adapters_registry.content.adapter_files import WEIGHTS_FILE, digest_of
from adapters_registry.errors import (
    InsufficientStorage,
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
from adapters_registry.names import check_name
from adapters_registry.recording import (
    Registration,
    StagedFiles,
    add_registration,
    find_same_content,
)
from adapters_registry.records import reservations
from adapters_registry.records.catalog import VersionRecord
from adapters_registry.records.change import Change
from adapters_registry.records.idempotency import (
    Idempotency,
    is_known,
)
from adapters_registry.records.tenants import no_tenant
from adapters_registry.trust.signatures import verify_signature

log = logging.getLogger(__name__)

T = TypeVar("T")


class Intake:
    """One running registration, with an empty directory for its files, and its reservations.

    Call `admit` first, then `reserve_disk` before the files are written, then `commit`.
    """

    def __init__(self, records: Records, directory: Path) -> None:
        self.directory = directory
        self._records = records
        self._reservation: str | None = None
        self._refusal: QuotaExceeded | None = None  # if set, only known files are accepted
        self._tenant, self._reserved_bytes, self._known_bytes = "", 0, 0

    def admit(
        self, tenant: str, name: str, size_bytes: int = 0, idempotency: Idempotency | None = None
    ) -> None:
        """Check the name, the tenant and the quota, and reserve the quota.

        `size_bytes` is the known size of the files so far. A repetition with a known idempotency
        key reserves nothing, because it usually adds nothing. If the tenant is over quota, files
        that are not larger than this adapter's largest version are let in, because they may be
        known ones. `commit` refuses them if they are not.

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
        """Reserve quota for files of `size_bytes` in total, if that is more than was announced.

        Raises:
            QuotaExceeded: the tenant may have no more.
        """
        if self._refusal and size_bytes > self._known_bytes:
            raise self._refusal
        if (reservation := self._reservation) and size_bytes > self._reserved_bytes:
            self._within_quota(lambda change: reservations.enlarge(change, reservation, size_bytes))
            self._reserved_bytes = size_bytes

    def reserve_disk(self, num_bytes: int) -> None:
        """Reserve disk budget for `num_bytes` in total. Collects garbage if there is no room.

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

        Returns the version, in state `pending`, and True. If the adapter already has a version with
        the same content, returns that version and False. If the registration fails, its files are
        removed, here and at the origin.

        Raises:
            FileNotFoundError: one of the two files is missing.
            QuotaExceeded, InsufficientStorage, StoreUnavailable, NotFound: as in the methods above.
            SignatureRefused: the tenant's policy wants a signature, and this one does not fit.
            KeyReused: the idempotency key came with another request before.
        """
        content = self._records.content
        # Compositions and fits are made here, of versions whose signatures were looked at.
        signed_by = (
            None if asked.made.keys() & {COMPOSED, FITTED} else self._verify_signature(asked.tenant)
        )
        came_as, copies = self._drop_copies()
        digest, size_bytes = content.seal(self.directory)
        self.reserve_disk(size_bytes)
        files = StagedFiles(
            self.directory, digest, size_bytes, came_as or digest, copies, signed_by
        )

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

    def _verify_signature(self, tenant: str) -> dict[str, str] | None:
        """Return who has signed the files, if the tenant's policy asks for that."""
        known = self._records.catalog.tenants.get(tenant)
        if known is None:
            raise no_tenant(tenant)
        return verify_signature(self.directory, known.policy, self._records.sigstore_trust)

    def _drop_copies(self) -> tuple[str, list[str]]:
        """Leave copies of the base out of the files.

        Returns their keys, and the digest of the files as they came, which is empty if there were
        no copies.
        """
        weights = self.directory / WEIGHTS_FILE
        copies = find_copies(weights, self._records.base.directory)
        if not copies:
            return "", []
        came_as, size_bytes = digest_of(self.directory)
        self.reserve_disk(2 * size_bytes)  # until the old file is gone
        drop(weights, copies)
        return came_as, copies

    def _require_known(self, asked: Registration, digest: str, refusal: QuotaExceeded) -> None:
        with self._records.change() as change:
            if find_same_content(change, asked.tenant, asked.name, digest) is None:
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

    Raises `InsufficientStorage` if the disk was full at any write within the context.
    """
    with records.content.staging() as directory:
        intake = Intake(records, directory)
        try:
            yield intake
        finally:
            with suppress(SQLAlchemyError, RegistryError):  # it also ends by itself, later
                intake.end()
