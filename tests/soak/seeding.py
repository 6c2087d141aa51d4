"""Before the server starts: writes the fleet into its data folder.

The files are checked as the gate does, but not tried on the engine, which would take a second or
more for each adapter. What comes during the soak goes through the whole gate.
"""

from __future__ import annotations

from pathlib import Path

from adapters_registry.records.aliases import point_alias
from adapters_registry.records.catalog import Target, VersionRecord
from adapters_registry.records.retirement import retire_version
from adapters_registry.records.tables import VersionState
from adapters_registry.records.tenants import create_tenant
from adapters_registry.registry import Registry
from server.process.data_dir import own_data_dir
from server.process.serve import prepare_base
from server.process.startup import open_registry
from server.settings import load_settings
from tests.soak.fleet import TENANTS, Adapter, Fleet
from tests.soak.weights import files_of, metadata_of


def seed(data_dir: Path, fleet: Fleet, max_rank: int) -> None:
    """Give each adapter of the fleet its own content, and nothing else.

    An earlier soak may have left other versions. They are retired.
    """
    settings = load_settings(data_dir=data_dir, max_lora_rank=max_rank)
    with own_data_dir(settings):
        registry = open_registry(settings, prepare_base(settings, print))
        try:
            for tenant in TENANTS:
                if tenant.name not in registry.catalog.tenants:
                    registry.apply(create_tenant, tenant.name)
            for adapter in fleet.adapters:
                _reset(registry, adapter)
        finally:
            registry.close()


def _reset(registry: Registry, adapter: Adapter) -> None:
    tenant, name = adapter.tenant.name, adapter.name
    found = registry.catalog.adapters.get((tenant, name))
    ready = found.ready.values() if found else ()
    wanted = metadata_of(adapter.number).items()
    own = next((v for v in ready if wanted <= v.metadata.items()), None)
    if own is None:
        own = _register(registry, adapter)
    live = registry.catalog.adapters[(tenant, name)].aliases["live"]
    if live.targets != (Target(own.number, 100),):
        registry.apply(point_alias, tenant, name, "live", [Target(own.number, 100)])
    for other in ready:
        if other.number != own.number:
            registry.apply(retire_version, tenant, name, other.number)


def _register(registry: Registry, adapter: Adapter) -> VersionRecord:
    """Register an adapter's own content. Where it is the first version, it becomes the live one."""

    def stage(directory: Path) -> None:
        for name, content in files_of(adapter.number).items():
            (directory / name).write_bytes(content)

    version, _ = registry.register(
        adapter.tenant.name,
        adapter.name,
        "the soak's fleet",
        stage,
        promote=True,
        metadata=metadata_of(adapter.number),
    )
    if version.state is not VersionState.READY:
        version = registry.accept(version, registry.check_files(version))
    return version
