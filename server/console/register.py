"""Registering an adapter's next version by dropping its files on the page."""

from __future__ import annotations

from fastapi import Request
from fastapi.responses import Response

from adapters_registry.content.adapter_files import ADAPTER_FILES, COMPANION_FILES
from adapters_registry.records.tables import VersionState
from server.api.admin.adapters import served_form
from server.api.routes import Routes
from server.console.parts import Parts
from server.gate.gate import CHECKABLE


def router(parts: Parts) -> Routes:
    """Return the routes of registration."""
    routes = Routes(prefix="/register")
    services, render = parts.services, parts.renderer.page

    @routes.get("")
    async def show_form(request: Request) -> Response:
        """Show the form."""
        return render(
            request,
            "register.html",
            needed=ADAPTER_FILES,
            companions=COMPANION_FILES,
            max_mib=services.settings.max_adapter_mib,
        )

    @routes.post("")
    async def register(request: Request) -> Response:
        """Take in an upload, and answer with the gate's verdict, with every reason."""
        version, is_new = await services.intakes.take_in(request, None)
        asked = request.state.registration
        version, is_new = await served_form(
            services.gate, services.compositions, asked, version, is_new=is_new
        )
        if version.state in CHECKABLE:
            services.gate.start(version)
        version = await services.gate.verdict(version)
        services.leases.follow(services.registry.catalog)
        is_ready = version.state is VersionState.READY
        adapter = services.registry.get_adapter(version.tenant, version.name)
        return render(
            request,
            "verdict.html",
            status=200 if is_ready else 422,
            version=version,
            adapter=adapter,
            is_ready=is_ready,
            is_new=is_new,
        )

    return routes
