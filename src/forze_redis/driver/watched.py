"""redis-py's connections, with a guard that hears how each connect, write and answer went.

They also know how long an answer may take: the client's ``socket_timeout``; the first one of a
call that had to wait for its connection what is left of that, so that an outage costs it once;
a blocking command what it asks for on top; and nothing more than the caller's patience.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from time import monotonic
from typing import Any

from redis import connection as blocking
from redis import exceptions as driver
from redis import sentinel as blocking_sentinel
from redis.asyncio import connection as asynchronous

from forze_redis.driver.guard import Guard, is_outage
from forze_redis.driver.patience import allowed_seconds, asked_seconds, turn_deadline
from forze_redis.wire.place import Kinds

SYNC = Kinds(
    plain=blocking.Connection,
    tls=blocking.SSLConnection,
    unix=blocking.UnixDomainSocketConnection,
    sentinel=blocking_sentinel.SentinelManagedConnection,
    sentinel_tls=blocking_sentinel.SentinelManagedSSLConnection,
)


_SILENCE_SECONDS = 0.5
"""A caller who gives up after so long without an answer has learned something of the server."""
_LEAST_SHARE = 0.1
"""Of ``socket_timeout``: what a call gets for its answer however long it waited before."""
_NEARLY_ALL = 0.9
"""Of it is as good as all: then the socket is left as it is."""


class _Watching:
    """What both sorts of connection tell and know.

    ``deadline`` is that of the call which took the connection, up to its first answer. On a
    cluster it is the turn's, for whatever is asked in it.
    """

    guard: Guard
    socket_timeout: float | None
    socket_connect_timeout: float | None
    deadline: float = inf
    _staged = _asked = 0.0  # what the command that is packed, and the one that was sent, asks for

    def _told(self, error: BaseException, since: float, *, listening: bool = False) -> None:
        """Tell the guard, once however many methods ``error`` leaves through."""
        quiet = listening or self._asked > 0
        if hasattr(error, "_heard_by_guard"):
            return
        if isinstance(error, asyncio.CancelledError):
            waited = monotonic() - since
            if not quiet and waited >= _SILENCE_SECONDS:
                error._heard_by_guard = True  # type: ignore[attr-defined]
                self.guard.failed(TimeoutError(f"no answer within {waited:.1f} s"))
        elif is_outage(error) and not (listening and isinstance(error, driver.TimeoutError)):
            error._heard_by_guard = True  # type: ignore[attr-defined]
            self.guard.failed(error)

    def _answered(self) -> None:
        self.deadline = inf
        self.guard.succeeded()

    def _most(self, usual: float | None) -> float:
        """Seconds for what usually has ``usual``."""
        most = min(usual or inf, allowed_seconds.get())
        left = min(self.deadline, turn_deadline.get()) - monotonic()
        if left > most * _NEARLY_ALL:
            return most
        return min(most, max(left, (self.socket_timeout or 0) * _LEAST_SHARE))

    @contextmanager
    def _connecting(self) -> Iterator[None]:
        usual, since = self.socket_connect_timeout, monotonic()
        self.socket_connect_timeout = self._most(usual)
        self._asked = 0.0
        try:
            yield
        except BaseException as error:
            self._told(error, since)
            raise
        finally:
            self.socket_connect_timeout = usual

    def _answer_seconds(self) -> float | None:
        most = self._most(self.socket_timeout) + self._asked
        return None if most == inf else most


class _Watched(_Watching):
    """Over a connection class of ``redis.asyncio``."""

    is_connected: bool

    async def connect(self, *args: Any, **kwargs: Any) -> Any:
        if self.is_connected:
            return None
        with self._connecting():
            return await super().connect(*args, **kwargs)  # type: ignore[misc]

    def pack_command(self, *args: Any) -> Any:
        self._staged = asked_seconds(args)
        return super().pack_command(*args)  # type: ignore[misc]

    async def send_packed_command(self, *args: Any, **kwargs: Any) -> Any:
        asked, self._staged, since = self._staged, 0.0, monotonic()
        try:
            sent = await super().send_packed_command(*args, **kwargs)  # type: ignore[misc]
        except BaseException as error:
            self._told(error, since)
            raise
        self._asked = asked
        return sent

    async def _send_packed_command(self, command: Any) -> None:
        if not self.is_connected:  # redis-py checked it, and then let others run
            raise driver.ConnectionError("the connection was closed by another call")
        await super()._send_packed_command(command)  # type: ignore[misc]

    async def read_response(self, *args: Any, **kwargs: Any) -> Any:
        listening = bool(kwargs.get("push_request")) or kwargs.get("timeout") is not None
        usual, since = self.socket_timeout, monotonic()
        if not listening:
            self.socket_timeout = self._answer_seconds()
        try:
            reply = await super().read_response(*args, **kwargs)  # type: ignore[misc]
        except driver.ResponseError:
            self._answered()
            raise
        except BaseException as error:
            self._told(error, since, listening=listening)
            raise
        finally:
            self.socket_timeout = usual
        if reply is not None or not listening:
            self._answered()
        return reply


class _WatchedBlocking(_Watching):
    """Over a connection class of ``redis``."""

    _sock: Any

    def connect(self, *args: Any, **kwargs: Any) -> Any:
        if self._sock is not None:
            return None
        with self._connecting():
            return super().connect(*args, **kwargs)  # type: ignore[misc]

    def send_command(self, *args: Any, **kwargs: Any) -> Any:
        sent = super().send_command(*args, **kwargs)  # type: ignore[misc]
        self._asked = asked_seconds(args)
        return sent

    def send_packed_command(self, *args: Any, **kwargs: Any) -> Any:
        self._asked, since = 0.0, monotonic()
        try:
            return super().send_packed_command(*args, **kwargs)  # type: ignore[misc]
        except Exception as error:
            self._told(error, since)
            raise

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        listening = bool(kwargs.get("push_request")) or "timeout" in kwargs
        sock, since, usual = self._sock, monotonic(), self.socket_timeout
        seconds = usual if listening else self._answer_seconds()
        try:
            if seconds != usual and sock is not None:
                sock.settimeout(seconds)
            reply = super().read_response(*args, **kwargs)  # type: ignore[misc]
        except driver.ResponseError:
            self._answered()
            raise
        except Exception as error:
            self._told(error, since, listening=listening)
            raise
        finally:
            if seconds != usual and self._sock is not None:
                self._sock.settimeout(usual)
        self._answered()
        return reply


def watched(kind: Any, guard: Guard, made: weakref.WeakSet[Any] | None = None) -> Any:
    """``kind``, a connection class of either sort, whose connections tell ``guard``.

    With ``made`` each of them is found there for as long as it lives.
    """
    over = _Watched if issubclass(kind, asynchronous.AbstractConnection) else _WatchedBlocking

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        kind.__init__(self, *args, **kwargs)
        if made is not None:
            made.add(self)

    body = {"__doc__": over.__doc__, "__init__": __init__, "guard": guard}
    return type(kind.__name__, (over, kind), body)
