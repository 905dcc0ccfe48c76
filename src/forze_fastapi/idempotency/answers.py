"""Answers as FastAPI makes them, as they are kept, and as exceptions are given them."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias

from fastapi import Request, Response
from fastapi.datastructures import DefaultPlaceholder
from fastapi.requests import HTTPConnection
from fastapi.routing import serialize_response
from fastapi.utils import is_body_allowed_for_status_code
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from forze.application.contracts.idempotency import IdempotencySnapshot
from forze_fastapi.idempotency.header import REPLAYED

Kept: TypeAlias = Callable[[Response, Exception], Awaitable[Response]]
"""What is done with the answer to an exception before it is sent."""

_KEPT: Final = "forze.idempotency"
_HANDLERS: Final = "starlette.exception_handlers"
_DUMPS_JSON = "dump_json" in inspect.signature(serialize_response).parameters
"""Whether this FastAPI serialises straight to JSON; older ones go by way of plain values."""


def route_of(request: Request) -> Any:
    """The route that serves ``request``, with what its router was included with."""
    fastapi_scope = request.scope.get("fastapi", {})
    return fastapi_scope.get("effective_route_context") or request.scope["route"]


async def response_of(
    value: object, route: Any, injected: Response, *, is_coroutine: bool
) -> Response:
    """What FastAPI makes of what a handler returned: by the response model, class and status of
    its route, and by the status and headers that were set on the ``injected`` response."""
    if isinstance(value, Response):
        return value
    response_class = route.response_class
    by_default = isinstance(response_class, DefaultPlaceholder)
    if isinstance(response_class, DefaultPlaceholder):
        response_class = response_class.value
    to_json = _DUMPS_JSON and by_default and route.response_field is not None
    extra: dict[str, Any] = {"dump_json": True} if to_json else {}
    content = await serialize_response(
        field=route.response_field,
        response_content=value,
        include=route.response_model_include,
        exclude=route.response_model_exclude,
        by_alias=route.response_model_by_alias,
        exclude_unset=route.response_model_exclude_unset,
        exclude_defaults=route.response_model_exclude_defaults,
        exclude_none=route.response_model_exclude_none,
        is_coroutine=is_coroutine,
        **extra,
    )
    status = injected.status_code or route.status_code
    chosen: dict[str, Any] = {} if status is None else {"status_code": status}
    response: Response = (
        Response(content, media_type="application/json", **chosen)
        if to_json
        else response_class(content, **chosen)
    )
    if not is_body_allowed_for_status_code(response.status_code):
        response.body = b""
    response.raw_headers.extend(injected.raw_headers)
    return response


def snapshot_of(response: Response) -> IdempotencySnapshot | None:
    """``response`` as it is kept; None where its body is not there, but streamed or a file."""
    body: object = getattr(response, "body", None)
    if not isinstance(body, bytes | memoryview):
        return None
    headers = tuple(
        (name.decode("latin-1"), value.decode("latin-1"))
        for name, value in response.raw_headers
        if name.lower() not in (b"content-type", b"content-length")
    )
    content_type = response.headers.get("content-type")
    return IdempotencySnapshot(response.status_code, content_type, bytes(body), headers)


def replay_of(snapshot: IdempotencySnapshot, injected: Response) -> Response:
    """The response that gives ``snapshot`` again.

    What dependencies have set on the ``injected`` response is of this request, and goes along.
    """
    response = Response(snapshot.body, snapshot.status_code)
    if snapshot.content_type is not None:
        response.headers["content-type"] = snapshot.content_type
    for name, value in snapshot.headers:
        response.headers.append(name, value)
    kept = set(response.headers)
    response.raw_headers.extend(
        (name, value)
        for name, value in injected.raw_headers
        if name.decode("latin-1").lower() not in kept
    )
    response.headers[REPLAYED] = "true"
    return response


def keep_exceptions(request: Request, kept: Kept) -> None:
    """Let ``kept`` see what ``request`` is answered with where it raises.

    Only the application's exception handlers know that, once every dependency has been left;
    where they are looked up, there is from now on one around each.
    """
    request.scope[_KEPT] = kept
    for table in request.scope.get(_HANDLERS, ()):
        for kind, handler in table.items():
            if not isinstance(handler, _Watched):
                table[kind] = _Watched(handler)


def is_answered(request: Request, error: BaseException) -> bool:
    """Whether one of the application's exception handlers answers ``error``."""
    by_class, by_status = request.scope.get(_HANDLERS, ({}, {}))
    by_its_status = isinstance(error, HTTPException) and error.status_code in by_status
    return by_its_status or any(each in by_class for each in type(error).__mro__)


class _Watched:
    """An exception handler of the application, and what is done with its answers."""

    def __init__(self, handler: Callable[..., Any]) -> None:
        self.handler = handler

    async def __call__(self, connection: HTTPConnection, error: Exception) -> Response | None:
        response: Response | None = await call(self.handler, connection, error)
        kept: Kept | None = connection.scope.get(_KEPT)
        return response if response is None or kept is None else await kept(response, error)


async def call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What ``function`` returns; one that is not async runs in a thread."""
    if inspect.iscoroutinefunction(function):
        return await function(*args, **kwargs)
    returned = await run_in_threadpool(function, *args, **kwargs)
    return await returned if isinstance(returned, Awaitable) else returned
