"""A database with ready versions of one adapter, for servers that are started on it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from shutil import copytree

from adapters_registry.check.base import BaseSpec
from adapters_registry.content.store import ContentStore
from adapters_registry.registry import Registry
from server.auth import Keys
from tests.adapter_recipe import Recipe
from tests.tiny import TINY_BASE

CONTENT = "content"


def database_in(folder: Path) -> str:
    """The URL of the database in a folder."""
    return f"sqlite:///{folder / 'registry.db'}"


def register_versions(folder: Path, count: int) -> str:
    """Register `count` ready versions of `home`, of which the first is live. Returns a key."""
    base = BaseSpec.from_config("tiny", TINY_BASE, max_rank=8)
    registry = Registry(database_in(folder), ContentStore(folder / CONTENT), base)
    for seed in range(1, count + 1):
        files = Recipe().make(folder / f"home{seed}", base, seed)
        version, _ = registry.register(
            "default", "home", "test", partial(copytree, files, dirs_exist_ok=True)
        )
        registry.accept(version, registry.check_files(version))
    key = Keys(registry).create("default", ["admin", "inference"])
    registry.close()
    return key
