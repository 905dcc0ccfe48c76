"""What the console serves, and to whom: to those that a dependency of the application lets in.

What changes something needs a header that no form and no other site can send, and everything
refuses requests that the browser says were made by another site. No request has a body, so that
nothing is read of anybody before he is let in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.params import Depends as Dependency
from fastapi.routing import APIRoute
from starlette.datastructures import MutableHeaders
from starlette.types import Message, Receive, Scope, Send

from forze.application.execution import ExecutionContext, ExecutionRuntime
from forze.errors import ConfigurationError
from forze_fastapi.console import explaining, gathering
from forze_fastapi.console.page import QUIET, load_page
from forze_fastapi.console.shapes import DocumentKey, Explanation, Invalidated, Overview
from forze_fastapi.context import context_of
from forze_fastapi.errors import HTTPProblem

INTENDED: Final = "X-Forze-Console"
"""The header of requests that change something; any value."""


def open_to_everyone() -> None:
    """A dependency that lets everyone in, for ``dependencies=[Depends(open_to_everyone)]``.

    Whoever reaches the console sees keys, tokens and hosts, and can invalidate documents.
    """


def console(
    runtime: ExecutionRuntime,
    *,
    dependencies: Sequence[Any] = (),
    include_in_schema: bool = False,
) -> APIRouter:
    """A page that shows live what the runtime's caches, locks and circuits do in this process.

    ::

        app.include_router(console(runtime, dependencies=[Depends(admin)]), prefix="/console")

    ``dependencies`` decide who is let in, to the page and to what is behind it; without one this
    is a ``ConfigurationError``. They should ask for something a browser sends by itself: a
    cookie, HTTP authentication, a network. The page is at ``prefix/``.

    While the page is open each of its requests asks every server for a sign of life; the
    runtime's reads are not slower for it. Nothing runs before it is first opened.
    """
    _check(dependencies)
    context: Any = Depends(context_of(runtime))
    router = APIRouter(
        dependencies=[*dependencies, Depends(_same_origin)],
        route_class=_QuietRoute,
        include_in_schema=include_in_schema,
        tags=["console"],
    )

    @router.get("/", summary="The console", response_class=Response)
    async def page() -> Response:
        body, headers = load_page()
        return Response(body, media_type="text/html", headers=headers)

    @router.get("/api/overview", summary="What this process shows of itself")
    async def overview(ctx: ExecutionContext = context) -> Overview:
        return await gathering.overview(ctx)

    @router.get("/api/explain", summary="Where one document is, and why")
    async def explain(
        key: Annotated[_ExplainQuery, Query()], ctx: ExecutionContext = context
    ) -> Explanation:
        which = DocumentKey(document=key.document, id=key.id, tenant=key.tenant)
        return await explaining.explain(ctx, which, compare=key.compare, watching=key.watch)

    @router.post("/api/invalidate", summary="Drop what is cached of one document, everywhere")
    async def invalidate(
        key: Annotated[DocumentKey, Query()],
        intended: Annotated[str | None, Header(alias=INTENDED)] = None,
        ctx: ExecutionContext = context,
    ) -> Invalidated:
        if not intended:
            raise HTTPProblem(403, "not-intended", f"Send the header {INTENDED}.")
        return await explaining.invalidate(ctx, key)

    return router


class _ExplainQuery(DocumentKey):
    compare: bool = False
    watch: bool = False


def _check(dependencies: object) -> None:
    if not isinstance(dependencies, Sequence) or isinstance(dependencies, str):
        raise ConfigurationError(
            f"console: dependencies is a list of Depends(...), not {dependencies!r}",
            name="dependencies",
        )
    for each in dependencies:
        if not isinstance(each, Dependency):
            raise ConfigurationError(
                f"console: dependencies holds {each!r}; write Depends({_named(each)})",
                name="dependencies",
            )
    if not dependencies:
        raise ConfigurationError(
            "console: who may see it? Give it dependencies=[Depends(admin)], with an admin of your "
            "own that raises for everybody else. To let everyone in who reaches it, say so: "
            "dependencies=[Depends(open_to_everyone)]",
            name="dependencies",
        )


def _named(each: object) -> str:
    return getattr(each, "__name__", "...")


class _QuietRoute(APIRoute):
    """Nothing it answers is kept, passed on, framed or taken for something else; refusals too."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def quietly(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in QUIET.items():
                    headers.setdefault(name, value)
            await send(message)

        await super().handle(scope, receive, quietly)


def _same_origin(request: Request) -> None:
    """Refuse what the browser says another site asks for; opening the page by a link is no such
    thing. Clients that are no browsers say nothing."""
    told = request.headers.get
    opened = (
        request.method == "GET"
        and told("sec-fetch-mode") == "navigate"
        and told("sec-fetch-dest", "document") == "document"
    )
    if told("sec-fetch-site", "none") not in ("same-origin", "none") and not opened:
        raise HTTPProblem(403, "cross-site", "The console answers its own page only.")
