"""What a dedicated server answers on the routes that only shared servers have."""

from __future__ import annotations

from server.api.dedicated.dedicated import Dedicated
from server.api.routes import Routes

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]
ONLY_SHARED = (
    "/admin/{path:path}",
    "/console",
    "/console/{path:path}",
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
)
"""These change or show the whole registry. A dedicated server's engine could check no adapter."""


def router(dedicated: Dedicated) -> Routes:
    """Return routes that send clients to a shared server."""
    routes = Routes(include_in_schema=False)

    async def refuse() -> None:
        raise dedicated.elsewhere()

    for path in ONLY_SHARED:
        routes.add_api_route(path, refuse, methods=METHODS)
    return routes
