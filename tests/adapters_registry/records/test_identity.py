"""Names that are given again: nothing of the earlier owner passes to the next one."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import delete, insert, select, update

from adapters_registry.check.base import BaseSpec
from adapters_registry.content.store import ContentStore
from adapters_registry.errors import InvalidMetadata
from adapters_registry.recording import MAX_METADATA_BYTES
from adapters_registry.records.access.sharing import share_adapter
from adapters_registry.records.change import MARKS_KEPT
from adapters_registry.records.retirement import delete_adapter, retire_version
from adapters_registry.records.tables import Adapter, AuditEntry, Epoch, Mark, Tenant, VersionState
from adapters_registry.records.tenants import create_tenant, delete_tenant
from adapters_registry.registry import Registry
from tests.adapters_registry.adapters import register, take_in
from tests.tiny import AdapterFactory

HOME = ("default", "home")


def test_an_adapter_that_is_made_again_is_private(
    registry: Registry, make_adapter: AdapterFactory
) -> None:
    registry.apply(create_tenant, "beta")
    first = register(registry, make_adapter(seed=1))
    registry.apply(share_adapter, *HOME, ["beta"], True)
    registry.apply(delete_adapter, *HOME, force=True)
    assert HOME not in registry.catalog.adapters
    second = register(registry, make_adapter(seed=2))
    adapter = registry.get_adapter(*HOME)
    assert not adapter.public
    assert not adapter.shared_with
    assert not adapter.shared_with_ids
    assert (first.number, second.number) == (1, 2), "engine-visible names are never reused"
    assert adapter.live == second
    assert [v.number for v in registry.read_history(*HOME)] == [2], "the other one's are not shown"
    with registry.session() as session:
        assert len(session.scalars(select(Adapter)).all()) == 2


def test_a_tenant_whose_name_is_given_again(
    registry: Registry, make_adapter: AdapterFactory
) -> None:
    old = registry.apply(create_tenant, "acme")
    register(registry, make_adapter())
    registry.apply(share_adapter, *HOME, ["acme", "later"], False)
    assert registry.get_adapter(*HOME).shared_with_ids == {old.id}
    registry.apply(delete_tenant, "acme")
    new, later = (registry.apply(create_tenant, name) for name in ("acme", "later"))
    assert len({old.id, new.id, later.id}) == 3
    assert (old.reused_at, later.reused_at) == (None, None)
    assert new.reused_at is not None
    shared = registry.get_adapter(*HOME)
    assert not shared.shared_with_ids & {new.id, later.id}
    assert shared.shared_with == {"acme", "later"}
    assert [e.action for e in registry.audit(tenant_id=new.id)] == ["tenant.create"]
    assert [e.action for e in registry.audit(tenant_id=old.id)] == [
        "tenant.delete",
        "tenant.create",
    ]
    registry.apply(share_adapter, *HOME, ["acme"], False)
    assert registry.get_adapter(*HOME).shared_with_ids == {new.id}


def test_the_catalog_keeps_what_is_or_may_be_served(
    registry: Registry, make_adapter: AdapterFactory, tmp_path: Path, tiny_base: BaseSpec
) -> None:
    register(registry, make_adapter(seed=1))
    register(registry, make_adapter(rank=9))
    register(registry, make_adapter(seed=3), promote=True)
    registry.apply(retire_version, *HOME, 1)
    again = Registry(str(registry.engine.url), ContentStore(tmp_path / "other"), tiny_base)
    for server in (registry, again):
        assert list(server.get_adapter(*HOME).versions) == [3]
        states = [server.get_version(*HOME, number).state for number in (1, 2, 3)]
        assert states == [VersionState.RETIRED, VersionState.REJECTED, VersionState.READY]
        pages = server.read_history(*HOME, limit=2), server.read_history(*HOME, before=2)
        assert [[v.number for v in page] for page in pages] == [[3, 2], [1]]
        assert server.find_adapters(VersionState.REJECTED) == {HOME}
        assert server.find_adapters(VersionState.PENDING) == set()
    again.close()


def test_metadata_is_bounded(registry: Registry, make_adapter: AdapterFactory) -> None:
    with pytest.raises(InvalidMetadata, match="metadata") as caught:
        take_in(registry, make_adapter(), metadata={"note": "x" * MAX_METADATA_BYTES})
    assert caught.value.param == "metadata"
    assert not registry.catalog.adapters


@pytest.mark.parametrize("num_changes_since", [0, 1, 2])
def test_a_restored_backup_is_noticed(
    registry: Registry, tmp_path: Path, tiny_base: BaseSpec, num_changes_since: int
) -> None:
    """Also if other servers have made as many changes since, or more, before this one looks."""
    other = Registry(str(registry.engine.url), ContentStore(tmp_path / "other"), tiny_base)
    registry.refresh()
    before, mark = registry.catalog.epoch, registry.catalog.mark
    told = []
    registry.on_restored = lambda: told.append("acme" in registry.catalog.tenants)
    registry.apply(create_tenant, "acme")
    assert not told
    with registry.session() as session:  # as a dump that was taken before has it
        session.execute(delete(AuditEntry))
        session.execute(delete(Tenant).where(Tenant.name == "acme"))
        session.execute(delete(Mark).where(Mark.epoch > before))
        session.execute(update(Epoch).values(value=before, mark=mark))
    for number in range(num_changes_since):
        other.apply(create_tenant, f"new{number}")
    registry.refresh()
    assert told == [True], "before what it knew is replaced"
    new = {f"new{number}" for number in range(num_changes_since)}
    assert set(registry.catalog.tenants) == {"default"} | new
    registry.apply(create_tenant, "later")
    assert len(told) == 1
    other.close()


def test_only_the_latest_changes_are_marked(registry: Registry) -> None:
    first = registry.catalog.epoch
    earlier = [{"epoch": first - n, "mark": f"{n}"} for n in range(1, MARKS_KEPT + 3)]
    with registry.session() as session:
        session.execute(delete(Mark))
        session.execute(insert(Mark), earlier)
    registry.apply(create_tenant, "acme")
    with registry.session() as session:
        marked = session.scalars(select(Mark.epoch).order_by(Mark.epoch)).all()
    last = registry.catalog.epoch
    assert (marked[0], marked[-1]) == (last - MARKS_KEPT + 1, last)
