"""The class of our routes: bounded and strict bodies, whole answers to what is not allowed."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Any, ClassVar

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.routing import APIRoute
from starlette.types import Receive, Scope, Send

from forze.errors import ForzeError
from forze_fastapi.documents.strict_json import NotJSON, strict_json
from forze_fastapi.errors import HTTPProblem, InvalidInput, problem_response

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class StrictRequest(Request):
    """A request whose body is read up to a limit, and by :func:`strict_json`."""

    max_body_bytes: int

    async def body(self) -> bytes:
        """The body; raises a 413 problem as soon as it is known to be too large."""
        if not hasattr(self, "_body"):
            size, chunks = 0, []
            async for chunk in self.stream():
                size += len(chunk)
                if size > self.max_body_bytes:
                    raise self._too_large()
                chunks.append(chunk)
            self._body = b"".join(chunks)
        return self._body

    def _too_large(self) -> HTTPProblem:
        return HTTPProblem(
            413,
            "body-too-large",
            f"The body may have {self.max_body_bytes} bytes at most.",
            title="The body is too large",
            max_bytes=self.max_body_bytes,
        )

    async def json(self) -> Any:
        """The value of the body; raises a 422 problem."""
        try:
            return strict_json(await self.body())
        except NotJSON as error:
            wrong = InvalidInput(detail=str(error), location="body", pointer="#")
            raise HTTPProblem(
                422,
                "validation",
                f"The body is no JSON that can be read: {error}.",
                title="The request cannot be accepted",
                errors=[wrong],
            ) from None


class DocumentRoute(APIRoute):
    """A route whose errors are answered as problems; handlers of the application come first."""

    max_body_bytes: ClassVar[int]
    allowed: ClassVar[Mapping[bool, str]]
    """The methods of one document (True) and of all of them."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run it, or refuse the method, with all that are allowed here and not only its own."""
        if scope["method"] not in (self.methods or ()):
            raise HTTPException(405, headers={"Allow": self.allowed[self.path.endswith("}")]})
        await super().handle(scope, receive, send)

    def get_route_handler(self) -> Handler:
        """As FastAPI's, with a strict request."""
        handle, limit = super().get_route_handler(), self.max_body_bytes

        async def answer(request: Request) -> Response:
            strict = StrictRequest(request.scope, request.receive)
            strict.max_body_bytes = limit
            try:
                return await handle(strict)
            except ForzeError as error:
                handlers = request.app.exception_handlers
                if any(cls in handlers for cls in type(error).__mro__):
                    raise
                return problem_response(error, request)

        return answer


def route_class(
    router: APIRouter, allowed: Mapping[bool, str], max_body_bytes: int
) -> type[APIRoute]:
    """The class of our routes on ``router``; what its own class does is done too."""
    own = router.route_class
    ours = (DocumentRoute,) if own is APIRoute else (DocumentRoute, own)
    return type("DocumentRoute", ours, {"max_body_bytes": max_body_bytes, "allowed": allowed})
