"""What is in memory after a start is not looked at again by the garbage collector."""

import gc
import weakref
from collections.abc import Iterator

import pytest

from server.process.running import freeze_heap


class Node:
    """An object that refers to itself, so only the garbage collector can free it."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_a_start_s_objects_are_frozen() -> None:
    freeze_heap()
    assert gc.get_freeze_count() > 10_000


def test_what_an_engine_that_died_had_left_is_collected_at_the_next_start() -> None:
    node = Node()
    freeze_heap()
    left = weakref.ref(node)
    del node
    gc.collect()
    assert left() is not None, "it is frozen"
    freeze_heap()
    assert left() is None
