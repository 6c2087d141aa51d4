"""The static check of a version's stored files."""

from __future__ import annotations

from dataclasses import replace

from adapters_registry.check.base import BaseSpec
from adapters_registry.check.ranks import RANK_LIMITS
from adapters_registry.check.static_check import AdapterFacts, check_adapter
from adapters_registry.compatibility import ALLOW_BASE_MISMATCH
from adapters_registry.composition.metadata import FIT_RANK
from adapters_registry.content.store import ContentStore
from adapters_registry.recording import left_out_of
from adapters_registry.records.catalog import VersionRecord
from adapters_registry.records.tables import VersionState


def check_stored(content: ContentStore, version: VersionRecord, base: BaseSpec) -> AdapterFacts:
    """Run the static check on a version's files, which are fetched if needed.

    If it was registered with `fit_rank`, its rank may be over the server's limit at its first
    check: it is then kept, and its best fit is served.

    Raises:
        AdapterRejected: it cannot work on this base. The error holds every reason found.
        ContentUnavailable, InsufficientStorage, StoreUnavailable: as `ContentStore.fetch`.
    """
    is_new = version.state is not VersionState.INCOMPATIBLE
    if is_new and version.metadata.get(FIT_RANK) is True:
        base = replace(base, max_rank=RANK_LIMITS[-1])
    with content.holding(version.digest) as path:
        facts = check_adapter(
            path,
            base,
            allow_base_mismatch=version.metadata.get(ALLOW_BASE_MISMATCH) is True,
        )
    return replace(facts, warnings=left_out_of(version.metadata) + facts.warnings)
