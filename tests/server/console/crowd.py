"""A registry with as many tenants and adapters as a large installation has."""

from __future__ import annotations

from sqlalchemy import insert

from adapters_registry.records.tables import Adapter, Alias, Tenant, Version, VersionState
from adapters_registry.registry import Registry

NUM_TENANTS, NUM_ADAPTERS = 1_000, 10_000


def name_of(index: int) -> tuple[str, str]:
    """Return the tenant and the name of an adapter; each tenant has ten."""
    return f"tenant-{index % NUM_TENANTS:04}", f"bot-{index // NUM_TENANTS:02}"


def fill(registry: Registry, num_adapters: int = NUM_ADAPTERS) -> None:
    """Add the tenants and the adapters, each with one version that is live."""
    names = [name_of(index) for index in range(num_adapters)]
    with registry.change() as change:
        session, epoch = change.session, change.epoch
        tenants = sorted({tenant for tenant, _ in names})
        session.execute(insert(Tenant), [{"name": name, "epoch": epoch} for name in tenants])
        rows = [
            {"tenant": tenant, "name": name, "last_number": 1, "epoch": epoch}
            for tenant, name in names
        ]
        ids = list(session.scalars(insert(Adapter).returning(Adapter.id), rows))
        versions = [
            {
                "adapter_id": id_,
                "number": 1,
                "digest": f"{id_:064x}",
                "state": VersionState.READY,
                "rank": 8,
                "size_bytes": 1000 + id_,
                "source": "test",
                "base": registry.base.fingerprint,
                "base_verdicts": {registry.base.fingerprint: {"name": registry.base.name}},
            }
            for id_ in ids
        ]
        session.execute(insert(Version), versions)
        aliases = [
            {"adapter_id": id_, "name": "live", "targets": [[1, 100]], "revision": 1} for id_ in ids
        ]
        session.execute(insert(Alias), aliases)
