"""The end of a connection that somebody else may be looking after.

A connection is gone for the server when the server has read its end. So who wants its room
sends that end on a descriptor of his own (``dup``) and waits there for the server's: only then
is there one connection less, whatever the thread or event loop that owned it does meanwhile.

redis-py's own ``disconnect`` is a coroutine of the connection's own event loop, or closes more
than we want. What stands for it here serves callbacks, other threads and loops that are no more;
it is the one place that knows the names of what is inside a connection and a transport.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

_GONE_SECONDS = 0.25
"""A server that does not answer does not count its connections either."""

Twin: TypeAlias = socket.socket | None
"""Where the server says that a connection is gone; None where it was before."""


def part(sock: Any) -> Twin:
    """Send the end of ``sock``; where that of the server will arrive."""
    try:
        twin = socket.socket(fileno=os.dup(sock.fileno()))
    except (OSError, AttributeError):  # closed already, or never opened
        return None
    try:
        twin.shutdown(socket.SHUT_WR)
    except OSError:
        twin.close()
        return None
    return twin


class Parting:
    """Connections whose end was sent; ``settle`` is called once they are gone."""

    def __init__(self, twins: Iterable[Twin], settle: Callable[[], None]) -> None:
        self._twins = list(twins)
        self._settle = settle

    def wait(self) -> None:
        """Return when they are gone; blocks, for a quarter of a second each at most."""
        try:
            for twin in self._twins:
                if twin is not None:
                    twin.settimeout(_GONE_SECONDS)
                    with contextlib.suppress(OSError):
                        while twin.recv(4096):
                            pass
        finally:
            self.at_once()

    async def gone(self) -> None:
        """:meth:`wait` for an event loop."""
        loop = asyncio.get_running_loop()
        try:
            for twin in self._twins:
                if twin is not None:
                    twin.setblocking(False)
                    with contextlib.suppress(OSError, TimeoutError):
                        async with asyncio.timeout(_GONE_SECONDS):
                            while await loop.sock_recv(twin, 4096):
                                pass
        finally:
            self.at_once()

    def at_once(self) -> None:
        """Wait for nothing."""
        for twin in self._twins:
            if twin is not None:
                twin.close()
        settle, self._settle = self._settle, _nothing
        settle()


def together(partings: Iterable[Parting]) -> Parting:
    """Several as one."""
    each = list(partings)

    def settle() -> None:
        for parting in each:
            parting.at_once()

    return Parting((twin for parting in each for twin in parting._twins), settle)


def _nothing() -> None:
    """Settles nothing."""


# -- what is inside a connection of redis-py ----------------------------------------


def socket_of(connection: Any) -> Any:
    """The socket of a connection, blocking or not; None where there is none."""
    writer = getattr(connection, "_writer", None)
    if writer is not None:
        return writer.get_extra_info("socket")
    return getattr(connection, "_sock", None)


def usable(connection: Any) -> bool:
    """Whether the connection is open, and redis-py does not want it replaced."""
    moved = getattr(connection, "should_reconnect", None)  # since redis-py 7
    return socket_of(connection) is not None and not (moved and moved())


def drop(connection: Any) -> None:
    """Close the descriptor of a blocking connection, and leave others of its socket open.

    redis-py's own ``disconnect`` shuts the socket down as well, for every descriptor of it.
    """
    sock, connection._sock = connection._sock, None
    if sock is not None:
        sock.close()
    connection.disconnect()


def abort(connection: Any) -> Any:
    """Close at once, within its event loop; its transport."""
    writer = connection._writer
    if writer is None:
        return None
    connection._writer = connection._reader = None
    with contextlib.suppress(RuntimeError):  # the loop is closed
        writer.transport.abort()
    return writer.transport


def bury(connection: Any) -> None:
    """Close what belongs to a closed event loop, which will not do it any more."""
    transport = abort(connection)
    below = getattr(getattr(transport, "_ssl_protocol", None), "_transport", None)
    for each in (transport, below):
        finish = getattr(each, "_call_connection_lost", None)
        if isinstance(each, asyncio.BaseTransport) and finish is not None:
            with contextlib.suppress(RuntimeError):
                finish(None)
