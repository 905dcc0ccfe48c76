"""What a cached handler sees of the request: nothing that is not part of the key.

A response is given to everybody whose request has the same key. So a handler that takes the
``Request`` gets one without what tells two such requests apart: no cookies, no credentials, no
headers but those that the key has, no address, no user, nothing that a middleware left in the
state. What it makes of that is fit for all of them, and a handler that needs more fails, or
answers as to a stranger, when it is first tried.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

from fastapi import Request
from fastapi.requests import HTTPConnection
from starlette.types import Message

_KEPT: Final = (
    "type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string",
    "root_path", "app_root_path", "app", "router", "route", "endpoint", "path_params",
    "fastapi",
)  # fmt: skip


def stripped(connection: HTTPConnection, headers: Collection[str]) -> HTTPConnection:
    """``connection`` with these headers (in lower case) alone, and without a body."""
    scope: dict[str, Any] = {
        name: connection.scope[name] for name in _KEPT if name in connection.scope
    }
    scope["headers"] = [
        (name, value)
        for name, value in connection.scope["headers"]
        if name.decode("latin-1").lower() in headers
    ]
    scope["client"] = scope["server"] = None
    if isinstance(connection, Request):
        return Request(scope, _empty)
    return HTTPConnection(scope)


async def _empty() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}
