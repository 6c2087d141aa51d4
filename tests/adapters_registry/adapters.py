"""Adapters taken in and checked without a server, for tests of the registry."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from shutil import copytree
from typing import Any

from adapters_registry.errors import AdapterRejected
from adapters_registry.records.catalog import VersionRecord
from adapters_registry.registry import Registry


def take_in(
    registry: Registry, source: Path, *, name: str = "home", **arguments: Any
) -> tuple[VersionRecord, bool]:
    stage = partial(copytree, source, dirs_exist_ok=True)
    return registry.register("default", name, str(source), stage, **arguments)


def check(registry: Registry, version: VersionRecord) -> VersionRecord:
    try:
        return registry.accept(version, registry.check_files(version))
    except AdapterRejected as rejection:
        return registry.reject(version, rejection.reasons)


def register(
    registry: Registry, source: Path, *, name: str = "home", **arguments: Any
) -> VersionRecord:
    return check(registry, take_in(registry, source, name=name, **arguments)[0])
