"""Versions that were never checked on the present base: how many, and the begin of their checks."""

from __future__ import annotations

import random
from collections.abc import Iterable

from adapters_registry.compatibility import NEVER_TRIED, OTHER_BASE, RANK_TOO_LARGE
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
    """Return a line for each cause why ready versions aren't offered here; None if all are."""
    found = [v for a in registry.catalog.adapters.values() for v in a.incompatible.values()]
    too_large = [version for version in found if _is_too_large(version)]
    others = [version for version in found if not _is_too_large(version)]
    lines = []
    if others:
        lines.append(
            f"{_counted(others)} are incompatible with the base {registry.base.name} and not "
            f"offered, {others[0].public_name} among them: `loraplex adapters recheck --all` "
            "checks them on it, as does a start with LORAPLEX_RECHECK_AT_START=true; `loraplex "
            "adapters show` has the reasons"
        )
    if too_large:
        rank = max(version.rank or 0 for version in too_large)
        lines.append(
            f"{_counted(too_large)} have a rank over this server's limit of "
            f"{registry.base.max_rank} (LORAPLEX_MAX_LORA_RANK) and are not offered, "
            f"{too_large[0].public_name} among them: the largest is {rank}"
        )
    return "\n".join(lines) or None


def _counted(versions: list[VersionRecord]) -> str:
    adapters = len({version.adapter_id for version in versions})
    return f"{len(versions)} versions of {adapters} adapters"


def _is_too_large(version: VersionRecord) -> bool:
    return any(reason["code"] == RANK_TOO_LARGE for reason in version.reasons)


def _is_unchecked(version: VersionRecord) -> bool:
    """Return whether it waits for its first verdict on this base."""
    unchecked = (NEVER_TRIED, OTHER_BASE)
    return any(reason["code"] in unchecked for reason in version.reasons) or not version.reasons
