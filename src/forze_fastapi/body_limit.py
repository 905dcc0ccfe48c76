"""A limit for request bodies, kept while they arrive."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from forze.errors import ConfigurationError
from forze_fastapi.errors import HTTPProblem, problem_response


class BodyLimit:
    """ASGI middleware: a body above ``max_bytes`` is answered with 413 ``body-too-large``.

    One that says so in ``Content-Length`` is not read at all; any other is read until it passes
    the limit. What the application streams, in or out, is not held back or gathered.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        if max_bytes < 0:
            raise ConfigurationError(
                f"BodyLimit: max_bytes is a number of bytes, not {max_bytes}", name="max_bytes"
            )
        self.app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application, or answer in its place."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif _announced(scope) > self._max_bytes:
            await self._refuse(scope, receive, send)
        else:
            await self._counted(scope, receive, send)

    async def _counted(self, scope: Scope, receive: Receive, send: Send) -> None:
        seen, exceeded, started = 0, False, False

        async def counting() -> Message:
            nonlocal seen, exceeded
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._max_bytes:
                exceeded = True
                raise self._problem(scope)
            return message

        async def sending(message: Message) -> None:
            nonlocal started
            if exceeded and not started:
                return  # whatever the application makes of it, the answer is ours
            started = True
            await send(message)

        try:
            await self.app(scope, counting, sending)
        except Exception:
            if started or not exceeded:
                raise
        if exceeded and not started:
            await self._refuse(scope, receive, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        await problem_response(self._problem(scope))(scope, receive, send)

    def _problem(self, scope: Scope) -> HTTPProblem:
        # The rest of the body is not wanted: the connection ends with this answer.
        headers = {"Connection": "close"} if scope.get("http_version", "").startswith("1") else {}
        return HTTPProblem(
            413,
            "body-too-large",
            f"The body may have {self._max_bytes} bytes at most.",
            title="The body is too large",
            headers=headers,
            max_bytes=self._max_bytes,
        )


def _announced(scope: Scope) -> int:
    said = Headers(scope=scope).get("content-length", "")
    return int(said[:20]) if said.isascii() and said.isdigit() else 0
