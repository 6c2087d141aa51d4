"""An origin that hangs must not hold up what is on the disk."""

import asyncio
import threading
from pathlib import Path

import pytest

from adapters_registry.content.stopping import GivenUp, check_stop
from adapters_registry.content.store import ContentStore
from adapters_registry.errors import StoreUnavailable
from server.residency.fetches import MAX_DOWNLOADS, Fetches


class HangingContent(ContentStore):
    """Content of which one digest is here, and every other one at an origin that hangs."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.is_over = threading.Event()
        self.num_hanging = self.num_given_up = 0

    def has(self, digest: str) -> bool:
        return digest == "here"

    def fetch(self, digest: str) -> Path:
        if not self.has(digest):
            self.num_hanging += 1
            try:
                while digest != "next" and not self.is_over.wait(0.001):
                    check_stop()
            except GivenUp:
                self.num_given_up += 1
                raise
            raise StoreUnavailable("no answer")
        return self.root


async def test_what_is_on_the_disk_does_not_wait_for_the_origin(tmp_path: Path) -> None:
    content = HangingContent(tmp_path)
    fetches = Fetches(content)
    hanging = [asyncio.create_task(fetches.fetch(f"far{n}")) for n in range(2 * MAX_DOWNLOADS)]
    while content.num_hanging < MAX_DOWNLOADS:
        await asyncio.sleep(0.001)
    assert await fetches.fetch("here") == content.root
    assert not any(task.done() for task in hanging)
    content.is_over.set()
    for task in hanging:
        with pytest.raises(StoreUnavailable):
            await task


async def test_downloads_that_are_given_up_free_their_threads(tmp_path: Path) -> None:
    content = HangingContent(tmp_path)
    fetches = Fetches(content)
    hanging = [asyncio.create_task(fetches.fetch(f"far{n}")) for n in range(MAX_DOWNLOADS)]
    while content.num_hanging < MAX_DOWNLOADS:
        await asyncio.sleep(0.001)
    for task in hanging:
        task.cancel()
    with pytest.raises(StoreUnavailable):  # it is tried, so it has a thread
        await fetches.fetch("next")
    assert content.num_given_up
