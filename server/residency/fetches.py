"""Gets the files that the engine loads: from the disk, or from the origin first."""

from __future__ import annotations

from pathlib import Path

from adapters_registry.content.store import ContentStore
from server.workers import Workers

MAX_READS = 4
"""How many adapters' files are compared with their digest at a time."""
MAX_DOWNLOADS = 8


class Fetches:
    """Separate threads for disk and origin, so that files on the disk never wait for the origin."""

    def __init__(self, content: ContentStore) -> None:
        self._content = content
        self._reads = Workers("disk-read", MAX_READS)
        self._downloads = Workers("origin-fetch", MAX_DOWNLOADS)

    async def fetch(self, digest: str) -> Path:
        """Return the directory of a digest. Raises what `ContentStore.fetch` raises."""
        workers = self._reads if self._content.has(digest) else self._downloads
        return await workers.run(self._content.fetch, digest)
