"""Collections by hand: remove files and records that nothing needs, while the server runs."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from fastapi import Query
from pydantic import BaseModel, Field

from adapters_registry.collection import Collector
from adapters_registry.registry import Registry
from server.api.routes import Routes
from server.settings import Settings
from server.workers import Workers


class CollectedFiles(BaseModel):
    """Files of adapters that were removed from one place."""

    adapters: int = Field(description="How many adapters' files.")
    size_bytes: int

    @classmethod
    def of(cls, sizes: dict[str, int]) -> CollectedFiles:
        """Count the bytes of each digest."""
        return cls(adapters=len(sizes), size_bytes=sum(sizes.values()))


class CollectionBody(BaseModel):
    """What a collection removed, or would remove."""

    disk: CollectedFiles
    origin: CollectedFiles
    rejected_versions: int = Field(description="Records of rejected versions.")


def router(registry: Registry, settings: Settings) -> Routes:
    """Return the route of collections."""
    routes = Routes(tags=["admin"])
    collector = Collector(
        registry, settings.garbage_grace, settings.keep_rejected, settings.keep_compositions
    )
    workers = Workers("collect", 1)

    @routes.post("/garbage")
    async def collect(
        dry_run: Annotated[bool, Query(description="Remove nothing, only count.")] = False,
    ) -> CollectionBody:
        """Remove files that no version needs, without waiting for the time of grace.

        Files are removed from this server's disk and from the origin; a server does so by itself
        after `LORAPLEX_GARBAGE_SECONDS`. Records of old rejected versions are removed, too.
        """
        found = await workers.run(collector.collect, grace=timedelta(0), dry_run=dry_run)
        return CollectionBody(
            disk=CollectedFiles.of(found.disk),
            origin=CollectedFiles.of(found.origin),
            rejected_versions=found.rejected_versions,
        )

    return routes
