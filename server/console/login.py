"""Logging in with an API key, and out."""

from __future__ import annotations

from urllib.parse import urlsplit

from fastapi import Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from server.api.routes import Routes
from server.auth import Caller
from server.console.guard import LOGIN
from server.console.navigation import ROOT, places_for
from server.console.parts import Parts, caller_of
from server.console.rendering import HEADERS
from server.console.sessions import COOKIE, MAX_SECONDS
from server.errors import InvalidRequest, Unauthenticated
from server.middleware.refusals import Refusals

WHY = {
    "expired": "Your session or its API key has expired.",
    "revoked": "The API key of your session was revoked.",
    "unknown": "Your session is not valid on this server any more.",
    "out": "You are logged out.",
}
"""What the page says, by the reason why someone was sent there."""
MAX_KEY_CHARACTERS = 512


def router(parts: Parts) -> Routes:
    """Return the routes that begin and end sessions."""
    routes = Routes()
    refusals = Refusals()
    sessions, render = parts.sessions, parts.renderer.page

    @routes.get("/")
    async def home(request: Request) -> Response:
        """Lead to the first page that the caller may open."""
        return RedirectResponse(_home(caller_of(request)), 303, HEADERS)

    @routes.get("/login")
    async def show_login(request: Request, why: str = "", next: str = "") -> Response:
        """Show the form; those who have a session already, after a link from elsewhere, go on."""
        return render(request, "login.html", why=WHY.get(why, ""), next=_inside(next), error="")

    @routes.get("/session")
    async def resume(request: Request, next: str = "") -> Response:
        """Lead on whoever has a session: the browser does not send its cookie after a link from
        another site, but does when our own page asks."""
        target = _inside(next) or _home(caller_of(request))
        return Response(status_code=204, headers=HEADERS | {"hx-redirect": target})

    @routes.post("/login")
    async def log_in(request: Request) -> Response:
        """Begin a session."""
        form = await request.form()
        key, target = str(form.get("key", "")).strip(), _inside(str(form.get("next", "")))
        address = request.client.host if request.client else ""
        try:
            if len(key) > MAX_KEY_CHARACTERS:
                raise InvalidRequest("this is too long to be an API key")
            caller, cookie = sessions.begin(key)
        except (Unauthenticated, InvalidRequest) as error:
            reason = error.reason if isinstance(error, Unauthenticated) else "unknown"
            refusals.note(reason, key, address)
            return _refused(request, error.message, target)
        response = Response(
            status_code=204, headers=HEADERS | {"hx-redirect": target or _home(caller)}
        )
        response.set_cookie(
            COOKIE,
            cookie,
            max_age=MAX_SECONDS,
            path=ROOT,
            secure=request.url.scheme == "https",
            httponly=True,
            samesite="strict",
        )
        return response

    @routes.post("/logout")
    async def log_out(request: Request) -> Response:
        """End the session, and forget its cookie."""
        sessions.end(request.cookies.get(COOKIE, ""))
        response = Response(status_code=204, headers=HEADERS | {"hx-redirect": f"{LOGIN}?why=out"})
        response.delete_cookie(COOKIE, path=ROOT, httponly=True, samesite="strict")
        return response

    def _refused(request: Request, message: str, target: str) -> HTMLResponse:
        return render(request, "login_form.html", status=401, error=message, next=target)

    return routes


def _home(caller: Caller) -> str:
    places = places_for(caller)
    return ROOT + places[0].path if places else f"{ROOT}/nothing"


def _inside(target: str) -> str:
    """Return a path of this console, or nothing for whatever leads elsewhere."""
    parts = urlsplit(target)
    is_inside = not parts.scheme and not parts.netloc and parts.path.startswith(f"{ROOT}/")
    return target if is_inside and "\\" not in target and target.isprintable() else ""
