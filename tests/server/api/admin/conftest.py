"""What the tests of registration share."""

from collections.abc import Callable, Iterator

import pytest
from fastapi import FastAPI

from adapters_registry.registry import Registry


@pytest.fixture
def nothing_half_done(registry: Registry) -> Iterator[None]:
    yield
    assert not list((registry.content.root / "staging").iterdir())
    known = {v.digest for a in registry.catalog.adapters.values() for v in a.versions.values()}
    assert set(registry.content.sizes()) <= known | set(registry.content._holds)


@pytest.fixture
def budget(registry: Registry, app: FastAPI) -> Callable[[int], None]:
    """Give the registry's folder a budget of so many bytes."""

    def limit(num_bytes: int) -> None:
        registry.content.budget.limit_bytes = num_bytes

    return limit
