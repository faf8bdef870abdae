"""A guard in front of a web UI on this machine: no other web site can read it, or act through it.

Dagster's webserver answers any `Host`, so a site whose name is pointed at 127.0.0.1 (DNS rebinding) could read
everything, and it executes mutations that a link or an image sends by GET.
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.datastructures import Headers, QueryParams
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

LOCAL = ("127.0.0.1", "localhost", "[::1]")
"""Names under which a browser on this machine reaches the UI."""
SAFE = ("GET", "HEAD")


def guarded(app: ASGIApp, hosts: Sequence[str] = ()) -> ASGIApp:
    """Wrap an ASGI app so that it answers only requests to this machine, from its own pages, without mutation by GET.

    Args:
        hosts: further names under which the UI is reached, for example through a reverse proxy.
    """
    return TrustedHostMiddleware(_SameOrigin(app), [*LOCAL, *hosts], www_redirect=False)


class _SameOrigin:
    """Refuses requests from other sites' pages, and GraphQL mutations sent by GET."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        problem = _problem(scope) if scope["type"] in ("http", "websocket") else None
        if problem is None:
            await self.app(scope, receive, send)
        else:
            await PlainTextResponse(f"{problem}\n", status_code=403)(scope, receive, send)


def _problem(scope: Scope) -> str | None:
    """The reason to refuse a request; None: there is none."""
    headers = Headers(scope=scope)
    method = scope.get("method", "")  # a websocket has none
    if len(headers.getlist("host")) > 1:
        return "more than one Host header"
    origin = headers.get("origin")
    if origin is not None and origin.partition("://")[2].lower() != headers["host"].lower():
        return f"a page of {origin} asked for this; open the UI itself, at the address that `plumbline ui` shows"
    followed_link = method in SAFE and headers.get("sec-fetch-mode") == "navigate"
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and not followed_link:
        return "a page of another site asked for this; open the UI itself, at the address that `plumbline ui` shows"
    queries = QueryParams(scope["query_string"]).getlist("query") if method in SAFE else []
    if any(_changes_something(query) for query in queries):
        return "a GraphQL mutation by GET; send it by POST"
    return None


def _changes_something(query: str) -> bool:
    """Whether a GraphQL document has an operation other than a query; False if it cannot be parsed."""
    from graphql import GraphQLError, OperationDefinitionNode, OperationType, parse

    try:
        definitions = parse(query).definitions
    except (GraphQLError, RecursionError):
        return False  # nor can it be executed
    operations = (node for node in definitions if isinstance(node, OperationDefinitionNode))
    return any(operation.operation is not OperationType.QUERY for operation in operations)
