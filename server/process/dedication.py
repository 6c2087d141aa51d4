"""What is different about a dedicated server's start: its base holds one version of an adapter."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from adapters_registry.check.ranks import RANK_LIMITS
from adapters_registry.content.merged_model import COMPANIONS_FOLDER, MergedVersion
from adapters_registry.registry import Registry
from server.api.dedicated.dedicated import Dedicated
from server.settings import Settings, SettingsError

LARGEST_RANK = RANK_LIMITS[-1]
FOLLOW_SECONDS = 1.0

Verify = Callable[[str], None]
"""Compares a server that is up, at this address, with a shared one. Raises an error if it fails."""


def merged_in(base: str) -> MergedVersion | None:
    """Return the version that a base directory holds, None for an ordinary base.

    Raises:
        SettingsError: the file that names the version can't be read.
    """
    try:
        return MergedVersion.of(Path(base))
    except ValueError as error:
        raise SettingsError(f"LORAPLEX_BASE (--base): {error}") from error


def without_slots(settings: Settings) -> Settings:
    """Return the settings with the least room for adapters, as none is loaded."""
    least = {"max_loras": 1, "max_lora_rank": 8, "max_cpu_loras": 1, "recheck_at_start": False}
    return settings.model_copy(update=least)


def for_engine(settings: Settings, merged: MergedVersion) -> Settings:
    """Return the settings of the engine, whose base has the version's name."""
    return settings.model_copy(update={"served_base_name": merged.public_name})


def fetching(
    base: str, merged: MergedVersion, fetch: Callable[[str], Path]
) -> Callable[[str], Path]:
    """Return a function like `fetch`, which finds the version's companions beside the weights."""

    def find(digest: str) -> Path:
        return Path(base) / COMPANIONS_FOLDER if digest == merged.digest else fetch(digest)

    return find


def require_offered(registry: Registry, merged: MergedVersion) -> None:
    """Raise `SettingsError` unless the registry offers the version on the base that it names."""
    adapter = registry.catalog.adapters.get((merged.tenant, merged.name))
    version = adapter.ready.get(merged.version) if adapter else None
    if version is None or version.digest != merged.digest:
        raise SettingsError(
            f"LORAPLEX_BASE (--base): this model is {merged.public_name} merged into "
            f"{merged.base}, and the registry offers no such version on that base: check "
            "LORAPLEX_DATABASE_URL (--database-url), which names the shared servers' database, or "
            "make a model of another version with `loraplex dedicate`"
        )


async def tell_changes(
    registry: Registry, dedicated: Dedicated, announce: Callable[[str], None]
) -> None:
    """Say, whenever that changes, which requests go to the shared servers. Never returns."""
    said = ""
    while True:
        if (state := dedicated.state(registry.catalog)) != said:
            announce(state or f"{dedicated.merged.adapter_id} means this server's version again")
            said = state
        await asyncio.sleep(FOLLOW_SECONDS)
