"""An ASGI application behind a real uvicorn, in this event loop, for tests and demos.

On loopback, on a port of the system's choice. uvicorn and httpx are needed where it is used,
and not imported with this module.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx

_START_SECONDS = _STOP_SECONDS = 20.0
_CONNECTIONS = 500


def listening() -> socket.socket:
    """A socket that waits for connections, on a port of its own.

    Connections inherit its TCP_NODELAY, which asyncio sets on no socket made like this; else
    each answer of a head and a body takes the 40 ms of a delayed acknowledgement.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


@asynccontextmanager
async def serving(app: Any, **config: Any) -> AsyncIterator[str]:
    """Serve ``app`` for the length of the block, its lifespan included; the base address.

    ``config`` goes to ``uvicorn.Config``. Raises ``AssertionError`` where the lifespan fails.
    """
    import uvicorn

    listener = listening()
    settings: dict[str, Any] = {
        "log_level": "warning",
        "lifespan": "on",
        "timeout_graceful_shutdown": 5,
    } | config
    server = uvicorn.Server(uvicorn.Config(app, **settings))
    # The handlers it would leave, where two servers end in the order they began, swallow Ctrl-C.
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
    task = asyncio.create_task(server.serve([listener]))
    try:
        async with asyncio.timeout(_START_SECONDS):
            while not server.started:
                if task.done():
                    raise AssertionError(f"the application did not start: {task}")
                await asyncio.sleep(0.005)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        with contextlib.suppress(asyncio.CancelledError):
            async with asyncio.timeout(_STOP_SECONDS):
                await task
        listener.close()


@asynccontextmanager
async def client_of(app: Any, **config: Any) -> AsyncIterator[httpx.AsyncClient]:
    """An httpx client of ``app``, which is served for as long; over real sockets."""
    import httpx

    limits = httpx.Limits(max_connections=_CONNECTIONS)
    async with (
        serving(app, **config) as address,
        httpx.AsyncClient(base_url=address, timeout=20, limits=limits) as client,
    ):
        yield client
