"""Routers whose routes FastAPI builds once, in the app.

`APIRouter` builds each route, with its parameters' validators, and `include_router` builds all of
them again at each level. That is most of what it takes to make an app.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.params import Depends
from fastapi.routing import APIRoute


class Declared(APIRoute):
    """A route as it was declared: its path, its function, and FastAPI's options for it."""

    def __init__(
        self,
        path: str,
        endpoint: Callable[..., Any],
        *,
        dependency_overrides_provider: object = None,
        **options: Any,
    ) -> None:
        self.path, self.endpoint, self.options = path, endpoint, options


class Routes(APIRouter):
    """A router that only collects declarations, for another router or an app."""

    def __init__(
        self,
        *,
        prefix: str = "",
        tags: Sequence[str] = (),
        dependencies: Sequence[Depends] = (),
        include_in_schema: bool = True,
    ) -> None:
        super().__init__(
            prefix=prefix,
            tags=list(tags),
            dependencies=dependencies,
            include_in_schema=include_in_schema,
            route_class=Declared,
        )

    def add(self, routes: Routes) -> None:
        """Take over another router's declarations, below this one's prefix and dependencies."""
        _add(self, routes, ())

    def add_to(self, app: FastAPI, dependencies: Sequence[Depends] = ()) -> None:
        """Build the routes in an app. `dependencies` come before the routes' own."""
        _add(app.router, self, dependencies)


def _add(router: APIRouter, routes: Routes, dependencies: Sequence[Depends]) -> None:
    for route in routes.routes:
        assert isinstance(route, Declared)
        together = [*dependencies, *route.options["dependencies"]]
        options = {**route.options, "dependencies": together}
        router.add_api_route(route.path, route.endpoint, **options)
