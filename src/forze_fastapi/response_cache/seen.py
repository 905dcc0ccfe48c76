"""What a cached handler sees of the request: nothing that is not part of the key.

A response is given to everybody whose request has the same key. So a handler that takes the
``Request`` gets one that is made of the key, and without what else tells two requests apart: no
cookies, no credentials, no headers but those that the key has, no client, no user, nothing
that a middleware left in the state. What it makes of that is fit for all of them, and a handler
that needs more fails, or answers as to a stranger, when it is first tried.

What is left is what a cache goes by: the URL, with its host, and the headers that vary.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl, urlencode

from fastapi import Request
from fastapi.requests import HTTPConnection
from starlette.types import Message

_OF_THE_ROUTE: Final = ("asgi", "app", "router", "route", "endpoint", "path_params", "fastapi")
"""What is the same for every request to one path."""


class Seen(NamedTuple):
    """What is shown of a request: one to whatever has the same is given the same response.

    Parameters of the query are in the order of their names, several of one name as they came.
    """

    scheme: str
    root_path: str
    app_root_path: str | None
    path: str
    query: bytes
    headers: tuple[tuple[bytes, bytes], ...]


def seen_of(connection: HTTPConnection, headers: Collection[str]) -> Seen:
    """What is shown of ``connection``; ``headers`` are names in lower case, and ``host`` is one."""
    scope = connection.scope
    shown = {"host", *headers}
    query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
    return Seen(
        scope["scheme"],
        scope.get("root_path", ""),
        scope.get("app_root_path"),
        scope["path"],
        urlencode(sorted(query, key=lambda parameter: parameter[0])).encode(),
        tuple(
            (name, value)  # some servers have lists
            for name, value in scope["headers"]
            if name.decode("latin-1").lower() in shown
        ),
    )


def stripped(connection: HTTPConnection, seen: Seen) -> HTTPConnection:
    """``connection`` as a GET without a body, of which no more than ``seen`` is left."""
    scope: dict[str, Any] = {
        name: connection.scope[name] for name in _OF_THE_ROUTE if name in connection.scope
    }
    scope |= {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "scheme": seen.scheme,
        "root_path": seen.root_path,
        "path": seen.path,
        "query_string": seen.query,
        "headers": list(seen.headers),
        "client": None,
        "server": None,
    }
    if seen.app_root_path is not None:
        scope["app_root_path"] = seen.app_root_path
    if isinstance(connection, Request):
        return Request(scope, _empty)
    return HTTPConnection(scope)


async def _empty() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}
