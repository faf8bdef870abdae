"""Serves the HTML pages of artifacts beside Dagster's UI, so that an asset's page can link to its report."""

from __future__ import annotations

import os
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from plumbline.graph.metadata import PAGES

PROTECTION = {
    # The page is a document of its own origin: nothing in it can read the UI, or act through it.
    "Content-Security-Policy": "sandbox allow-scripts allow-popups; default-src 'none'; img-src data:; "
    "style-src 'unsafe-inline'; script-src 'unsafe-inline'; font-src data:",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


GRAPH = "/asset-groups"
"""Dagster's page of the graph. It begins with a timeline of jobs otherwise, which is empty after `plumbline run`."""


class WithPages:
    """Answers /pages/… with an HTML file below `data`, begins with the graph, and leaves other requests to the app."""

    def __init__(self, app: ASGIApp, data: Path) -> None:
        self._app, self._data = app, data.absolute()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(f"{PAGES}/"):
            await self._page(Request(scope))(scope, receive, send)
        elif scope["type"] == "http" and scope["path"] == "/":
            await RedirectResponse(GRAPH)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _page(self, request: Request) -> Response:
        # ".." goes up as text: with symbolic links for DVC's cache, a page itself lies elsewhere
        page = Path(os.path.normpath(f"{self._data}/{request.scope['path'].removeprefix(f'{PAGES}/')}"))
        if request.method not in ("GET", "HEAD"):
            return PlainTextResponse("only GET\n", status_code=405)
        if self._data not in page.parents or page.suffix != ".html" or not page.is_file():
            return PlainTextResponse("there is no such page; it may have been made anew\n", status_code=404)
        return FileResponse(page, media_type="text/html", headers=PROTECTION)
