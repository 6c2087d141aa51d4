"""Makes compositions: versions that are weighted sums of others, from the files that are stored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from adapters_registry.compatibility import ALLOW_BASE_MISMATCH
from adapters_registry.composition.metadata import COMPOSED, FITTED, made_on_request
from adapters_registry.composition.parts import (
    WeightedVersion,
    check_rank,
    composed_entry,
    copy_companions,
    file_metadata,
    fitted_entry,
    key_of,
)
from adapters_registry.composition.process import write_apart
from adapters_registry.composition.weighted_sum import FitError, Part, WeightedSum
from adapters_registry.errors import NotFound
from adapters_registry.recording import Registration
from adapters_registry.records.catalog import VersionRecord
from adapters_registry.records.idempotency import Idempotency
from adapters_registry.records.tables import VersionState, now
from adapters_registry.records.tenants import TenantRecord
from adapters_registry.registry import Registry
from adapters_registry.sources.source import check_size
from adapters_registry.trust.made_versions import require_signed
from server.api.composition.expression import resolve_parts
from server.errors import Conflict, ModelNotFound, OverQuota
from server.workers import Workers

MAX_AT_A_TIME = 2
"""How many compositions are made at a time. One tenant has one of them at most."""
MAX_WAITING = 4
"""How many a tenant may have made or waiting at a time."""
RETRY_SECONDS = 5
_MIB = 1 << 20


@dataclass(frozen=True)
class Wanted:
    """A composition to make, as the next version of an adapter."""

    tenant: str
    name: str
    parts: tuple[WeightedVersion, ...]
    rank: int | None = None
    """The rank of the best fit. None for the exact sum."""
    promote: bool = False
    is_on_request: bool = False
    """Whether a request has named its parts."""
    is_fit: bool = False
    """Whether it stands for its only part, whose rank is too large for this server."""


class Compositions:
    """Makes compositions in processes of their own, a few at a time."""

    def __init__(self, registry: Registry, base_name: str, max_adapter_mib: int) -> None:
        self._registry, self._base_name = registry, base_name
        self._max_bytes = max_adapter_mib * _MIB
        self._workers = Workers("compose", MAX_AT_A_TIME, per_tenant=1)
        self._records = Workers("compose-records", 1)
        self._waiting: Counter[str] = Counter()

    async def find_parts(
        self, named: Sequence[tuple[str, float]], tenant: TenantRecord
    ) -> tuple[WeightedVersion, ...]:
        """Return the versions that a tenant names by model and weight, for a composition.

        Raises:
            ModelNotFound, ModelIncompatible: a part is none that the tenant may use on this base.
            Conflict: a part is a version of the tenant's own that is not ready.
            CannotCompose: the parts cannot be added.
        """
        catalog = self._registry.catalog
        try:
            return resolve_parts(named, tenant, catalog, self._base_name, is_split_drawn=False)
        except ModelNotFound as error:
            error.param = "parts"
            for model, _ in named:
                await self._records.run(self._require_ready, model, tenant.name)
            raise

    async def make(
        self, wanted: Wanted, idempotency: Idempotency | None = None
    ) -> tuple[VersionRecord, bool]:
        """Make and register a composition. Returns the version, and whether it is new.

        It is the gate that decides whether it may serve.

        Raises:
            OverQuota: the tenant has too many compositions in the making.
            CannotCompose: its rank is too large, or the server cannot compute it.
            SignatureRefused: the tenant's adapters must be signed, and a part isn't.
            RegistryError: as in `Intake`, or the files of a part cannot be read.
        """
        with self._counted(wanted.tenant):
            return await self._workers.run_for(wanted.tenant, self._make, wanted, idempotency)

    def is_too_large(self, version: VersionRecord) -> bool:
        """Return whether a version's rank is over this server's limit."""
        return version.rank is not None and version.rank > self._registry.base.max_rank

    async def fit(self, original: VersionRecord, *, promote: bool) -> tuple[VersionRecord, bool]:
        """Register the best fit of a version at this server's limit of ranks, under the same name.

        Returns and raises what `make` does.
        """
        parts, rank = (WeightedVersion(original, 1.0),), self._registry.base.max_rank
        wanted = Wanted(original.tenant, original.name, parts, rank, promote, is_fit=True)
        return await self.make(wanted)

    def _make(self, wanted: Wanted, idempotency: Idempotency | None) -> tuple[VersionRecord, bool]:
        registry, parts = self._registry, wanted.parts
        if (owner := registry.catalog.tenants.get(wanted.tenant)) is not None:
            versions = [part.version for part in parts]
            require_signed(versions, wanted.tenant, owner.policy)
        with ExitStack() as held:
            digests = [part.version.digest for part in parts]
            folders = [held.enter_context(registry.content.holding(digest)) for digest in digests]
            terms = [Part(folder, part.weight) for folder, part in zip(folders, parts, strict=True)]
            total = WeightedSum(terms, wanted.rank)
            check_rank(total, wanted.rank, registry.base.max_rank)
            check_size(total.size_bytes, self._max_bytes)
            intake = held.enter_context(registry.intake())
            intake.admit(wanted.tenant, wanted.name, total.size_bytes, idempotency)
            intake.reserve_disk(total.size_bytes)
            error = write_apart(
                terms, wanted.rank, intake.directory, registry.base.name, file_metadata(parts)
            )
            copy_companions(folders, intake.directory)
            return intake.commit(_registration(wanted, error), idempotency)

    def _require_ready(self, model: str, tenant: str) -> None:
        """Raise `Conflict` if `model` is a version of the tenant's own that is not ready."""
        path, _, selector = model.partition("@")
        owner, slash, name = path.rpartition("/")
        if (slash and owner != tenant) or not (selector.isascii() and selector.isdigit()):
            return
        try:
            version = self._registry.get_version(tenant, name, int(selector[:10]))
        except NotFound:
            return
        if version.state is not VersionState.READY:
            raise Conflict(
                f"{version.public_name} is {version.state}: only ready versions can be parts of a "
                "composition",
                param="parts",
            )

    @contextmanager
    def _counted(self, tenant: str) -> Iterator[None]:
        if self._waiting[tenant] >= MAX_WAITING:
            raise OverQuota(
                f"the tenant {tenant} has {MAX_WAITING} compositions that are made or wait: wait "
                "until one is done",
                retry_after_seconds=RETRY_SECONDS,
            )
        self._waiting[tenant] += 1
        try:
            yield
        finally:
            self._waiting[tenant] -= 1


def _registration(wanted: Wanted, error: FitError) -> Registration:
    parts = wanted.parts
    if wanted.is_fit:
        original, rank = parts[0].version, wanted.rank or 0
        source = f"best fit: {original.public_name} at rank {rank}"
        made = {FITTED: fitted_entry(original, rank, error)}
    else:
        source = f"composition: {'+'.join(map(str, parts))}"
        entry = composed_entry(parts, wanted.rank, error, wanted.tenant)
        if wanted.is_on_request:
            entry = made_on_request(entry, key_of(parts), now())
        made = {COMPOSED: entry}
    mismatch = any(part.version.metadata.get(ALLOW_BASE_MISMATCH) is True for part in parts)
    return Registration(
        wanted.tenant,
        wanted.name,
        source,
        wanted.promote,
        {ALLOW_BASE_MISMATCH: True} if mismatch else {},
        made,
    )
