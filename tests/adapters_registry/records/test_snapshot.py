"""The catalog is read at one moment, whatever is changed meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from adapters_registry.check.base import BaseSpec
from adapters_registry.content.store import ContentStore
from adapters_registry.records.aliases import point_alias
from adapters_registry.records.catalog import Target
from adapters_registry.records.tenants import create_tenant
from adapters_registry.registry import Registry
from tests.adapters_registry.adapters import register
from tests.tiny import AdapterFactory


@pytest.mark.parametrize("table", ["versions", "adapters"])
def test_an_adapter_that_is_changed_while_the_catalog_is_read(
    registry: Registry,
    make_adapter: AdapterFactory,
    tmp_path: Path,
    tiny_base: BaseSpec,
    table: str,
) -> None:
    register(registry, make_adapter(seed=1))
    register(registry, make_adapter(seed=2))
    other = Registry(str(registry.engine.url), ContentStore(tmp_path / "other"), tiny_base)
    registry.refresh()
    changed: list[str] = []

    def change_before(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if f"FROM {table}" in statement and not changed:
            changed.append(statement)
            other.apply(point_alias, "default", "home", "live", [Target(2, 100)])

    other.apply(create_tenant, "acme")
    event.listen(registry.engine, "before_cursor_execute", change_before)
    registry.refresh()
    assert changed
    adapter = registry.get_adapter("default", "home")
    assert sorted(adapter.ready) == [1, 2]
    assert "acme" in registry.catalog.tenants
    registry.refresh()
    live = registry.get_adapter("default", "home").live
    assert live
    assert live.number == 2
    other.close()
