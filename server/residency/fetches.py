"""Files on the way to the engine: read from the disk, or fetched from the origin first."""

from __future__ import annotations

from pathlib import Path

from adapters_registry.content.store import ContentStore
from server.workers import Workers

MAX_READS = 4
"""Files that are compared with their digest at a time."""
MAX_DOWNLOADS = 8


class Fetches:
    """Threads for either way, so that what is on the disk never waits for an origin."""

    def __init__(self, content: ContentStore) -> None:
        self._content = content
        self._reads = Workers("disk-read", MAX_READS)
        self._downloads = Workers("origin-fetch", MAX_DOWNLOADS)

    async def fetch(self, digest: str) -> Path:
        """Return the directory of a digest. Raises what `ContentStore.fetch` raises."""
        workers = self._reads if self._content.has(digest) else self._downloads
        return await workers.run(self._content.fetch, digest)
