"""Versions that were never checked on the present base: how many, and the begin of their checks."""

from __future__ import annotations

import random
from collections.abc import Iterable

from adapters_registry.compatibility import OTHER_BASE
from adapters_registry.errors import NotFound
from adapters_registry.records.catalog import VersionRecord
from adapters_registry.registry import Registry
from adapters_registry.verdicts import begin_recheck


def begin(
    registry: Registry, adapters: Iterable[tuple[str, str]] | None = None
) -> list[VersionRecord]:
    """Return the versions that have no verdict on this base, to be checked on it.

    `adapters` limits it to some, by tenant and name. The order is random: replicas that start
    together then seldom check the same version.
    """
    known = registry.catalog.adapters
    due: list[VersionRecord] = []
    for key in known if adapters is None else adapters:
        if key in known and any(map(_is_unchecked, known[key].incompatible.values())):
            try:
                due += filter(_is_unchecked, registry.apply(begin_recheck, *key))
            except NotFound:  # deleted meanwhile
                continue
    random.shuffle(due)
    return due


def summary(registry: Registry) -> str | None:
    """Return one line on the versions that are incompatible with this base; None if none are."""
    found = [v for a in registry.catalog.adapters.values() for v in a.incompatible.values()]
    if not found:
        return None
    adapters = len({version.adapter_id for version in found})
    return (
        f"{len(found)} versions of {adapters} adapters are incompatible with the base "
        f"{registry.base.name} and not offered, {found[0].public_name} among them: `loraplex "
        "adapters recheck --all` checks them on it, as does a start with "
        "LORAPLEX_RECHECK_AT_START=true; `loraplex adapters show` has the reasons"
    )


def _is_unchecked(version: VersionRecord) -> bool:
    """Whether it waits for its first verdict on this base."""
    return any(reason["code"] == OTHER_BASE for reason in version.reasons) or not version.reasons
