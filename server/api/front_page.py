"""The pages that a person opens in a browser: `/`, and `/docs`, which needs no other host."""

from __future__ import annotations

import html
import mimetypes
from collections.abc import Callable
from pathlib import Path

from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse

from server.api.routes import Routes
from server.errors import NotFound
from server.errors.missing_routes import message_for

SWAGGER_UI = Path(__file__).with_name("swagger_ui")
"""Swagger UI's two files as its npm package has them (Apache-2.0), and the line that starts it."""

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:;"
    " connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
_HEADERS = {"content-security-policy": CONTENT_SECURITY_POLICY}

_FRONT = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Loraplex</title>
<style>body {{ font: 1rem/1.5 system-ui; max-width: 44rem; margin: 3rem auto; padding: 0 1rem }}
pre {{ overflow: auto; padding: 1rem; background: #8881; border-radius: .4rem }}</style></head>
<body>
<h1>Loraplex</h1>
<p>This server answers requests with one base model and with the LoRA adapters that are registered
for it. It speaks the APIs of OpenAI and Anthropic. It is <strong>{state}</strong>.</p>
<pre>curl http://HOST:PORT/v1/chat/completions \\
  -H "Authorization: Bearer $LORAPLEX_API_KEY" -H "Content-Type: application/json" \\
  -d '{{"model": "{base}", "messages": [{{"role": "user", "content": "Hello"}}]}}'</pre>
<p>In place of <code>{base}</code> put the name of an adapter: <code>/v1/models</code> lists those
that your key may use.</p>
<ul><li><a href="/console/login">The console</a></li>
<li><a href="/docs">All routes</a></li><li><a href="/readyz">Whether it is ready</a></li></ul>
</body></html>
"""

_DOCS = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Loraplex: routes</title><link rel="stylesheet" href="/docs/swagger-ui.css"></head>
<body><div id="swagger-ui"></div>
<script src="/docs/swagger-ui-bundle.js"></script><script src="/docs/start.js"></script>
</body></html>
"""
_FILES = ("swagger-ui.css", "swagger-ui-bundle.js", "start.js")
PATHS = frozenset({"/", "/docs", *(f"/docs/{name}" for name in _FILES)})
"""The paths of these pages, which need no key. They tell nothing about adapters or tenants."""


def router(base_name: str, is_ready: Callable[[], bool]) -> Routes:
    """Return the pages' routes. `is_ready()` tells what the first page says of the server."""
    pages = Routes(include_in_schema=False)

    @pages.api_route("/", methods=["GET", "HEAD"])
    async def front() -> HTMLResponse:
        state = "ready" if is_ready() else "not ready yet"
        return HTMLResponse(_FRONT.format(base=html.escape(base_name), state=state), 200, _HEADERS)

    @pages.get("/console")
    async def console() -> RedirectResponse:
        return RedirectResponse("/console/")

    @pages.api_route("/docs", methods=["GET", "HEAD"])
    async def docs() -> HTMLResponse:
        return HTMLResponse(_DOCS, 200, _HEADERS)

    @pages.get("/docs/{name}")
    async def file(name: str) -> FileResponse:
        if name not in _FILES:
            raise NotFound(message_for(f"/docs/{name}"))
        kind, _ = mimetypes.guess_type(name)
        headers = {"cache-control": "public, max-age=86400"}
        return FileResponse(SWAGGER_UI / name, headers=headers, media_type=kind)

    return pages
