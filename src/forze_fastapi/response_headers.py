"""Headers that a dependency puts on whatever its request is answered with.

FastAPI adds what dependencies set on their ``Response`` only to answers that it makes itself:
not to a handler's own ``Response``, nor to what an exception is answered with. These headers
are put on as the answer is sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_KEY: Final = "forze.response_headers"


class ResponseHeaders:
    """ASGI middleware: sends the headers that :func:`set_headers` was told.

    ``runtime_lifespan`` puts it around the application; add it yourself where that is not used.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        told: dict[str, str] = scope.setdefault(_KEY, {})

        async def sending(message: Message) -> None:
            if told and message["type"] == "http.response.start":
                headers = MutableHeaders(raw=list(message.get("headers", ())))
                headers.update(told)
                message = {**message, "headers": headers.raw}
            await send(message)

        await self.app(scope, receive, sending)


def set_headers(connection: HTTPConnection, response: Response, headers: Mapping[str, str]) -> None:
    """Set ``headers`` on the answer to ``connection``; on the injected ``response``, which serves
    answers of FastAPI's own making, where the middleware is missing."""
    told: dict[str, str] | None = connection.scope.get(_KEY)
    if told is None:
        response.headers.update(headers)
    else:
        told.update(headers)


def carry_headers(app: Any) -> None:
    """Put :class:`ResponseHeaders` around a running application, once."""
    stack = around = getattr(app, "middleware_stack", None)
    while around is not None:
        if isinstance(around, ResponseHeaders):
            return
        around = getattr(around, "app", None)
    if stack is not None:
        app.middleware_stack = ResponseHeaders(stack)
