"""One socket to one server: calls go out in order, replies come back in order.

A call is packed by its caller, appended to the queue of calls in flight and to the bytes
of this turn of the event loop, which are written together at its end; on the cache path a
call that has no company is written at once (:meth:`Connection.send_cached`). A reply
resolves the oldest call. A call that timed out or was cancelled keeps its place; its reply
is dropped. There is no timer per call: whoever owns the connection sweeps the queue
(:meth:`expire`).

A connection is used once: it opens, is made ready, and is lost. The calls that found no
room (too many in flight, or no socket yet) stand in the owner's queue, which outlives it.

:meth:`Connection.send_cached` and :meth:`Connection.data_received` are the hot path:
everything they need is bound beforehand, and they call nothing of ours on their straight way.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import socket
from asyncio import get_running_loop
from collections import deque
from time import monotonic
from typing import Any, Protocol, TypeAlias, cast

import hiredis

from forze.errors import BackendTimeout, BackendUnavailable, WriteOutcome
from forze_redis.wire.replies import BACKEND, RECONNECT_ON, REDIRECTS, error_from_reply
from forze_redis.wire.scripts import in_full, pack

Reply: TypeAlias = Any
"""What hiredis makes of a reply: bytes, int, float, bool, None, list, dict, set."""

Call: TypeAlias = "tuple[asyncio.Future[Reply] | None, float, bytes]"
"""The future to resolve (None: nobody waits), the deadline on ``monotonic``, the command."""

_NOTHING = object()
_HELLO = pack("HELLO")
_LEAVE = b"*2\r\n$12\r\nSUNSUBSCRIBE\r\n"


class Owner(Protocol):
    """What a connection needs of the link that made it."""

    where: str
    waiting: deque[Call]

    def watch(self) -> None:
        """See to it that deadlines are swept while calls are under way."""

    def elsewhere(self, packed: bytes, timeout: float) -> asyncio.Future[Reply]:
        """Send from an event loop that is not the connection's."""
        ...

    def pushed(self, message: list[Reply]) -> None:
        """Take a push message."""

    def lost(self, connection: Connection) -> None:
        """Learn that the connection is gone; its calls have been failed."""

    def redirected(self, call: Call, said: str) -> bool:
        """Whether a call that the server sent elsewhere has been taken there."""
        ...


class Connection(asyncio.Protocol):
    """A socket with its queue of calls.

    ``received`` (any bytes) and ``resolved`` (a call that was still waited for) are signs of
    life that a sweep looks at and resets; ``closed`` is done when the socket is.
    """

    __slots__ = (
        "_alone",
        "_call_soon",
        "_context",
        "_create_future",
        "_feed",
        "_gets",
        "_limit",
        "_loop",
        "_out",
        "_owner",
        "_paused",
        "_pending",
        "_ready",
        "_retiring",
        "_room",
        "_transport",
        "closed",
        "open",
        "received",
        "resolved",
        "watched",
        "writes",
    )

    def __init__(self, owner: Owner, loop: asyncio.AbstractEventLoop, limit: int) -> None:
        self._owner = owner
        self._loop = loop
        self._limit = limit
        self._call_soon = loop.call_soon
        self._context = contextvars.Context()  # nobody's request is kept alive by a flush
        self._create_future = loop.create_future
        reader = hiredis.Reader(notEnoughData=_NOTHING)
        self._feed = reader.feed
        self._gets = reader.gets
        self._pending: deque[Call] = deque()
        self._out: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self._room = False
        self._ready = False
        self._alone = False
        self._paused = False
        self._retiring = False
        self.open = False
        self.closed = loop.create_future()
        self.received = False
        self.resolved = False
        self.writes = 0
        self.watched = False
        """Whether the owner sweeps deadlines at present."""

    def send(self, packed: bytes, timeout: float) -> asyncio.Future[Reply]:
        """Queue one packed command; the future has its reply or a ``BackendError``.

        It is written with all others of this turn of the event loop.
        """
        self._alone = False
        return self.send_cached(packed, timeout)

    def send_cached(self, packed: bytes, timeout: float) -> asyncio.Future[Reply]:
        """:meth:`send`, but written at once where a single caller reads one after another.

        That is where nothing is in flight, and what was written last was alone as well; to wait
        for company would cost each of its reads another turn of the event loop.
        """
        if get_running_loop() is not self._loop:
            return self._owner.elsewhere(packed, timeout)
        future = self._create_future()
        if self._room:
            call = (future, monotonic() + timeout, packed)
            pending = self._pending
            at_once = self._alone and not pending
            if not at_once and not self._out:
                self._call_soon(self._flush, context=self._context)
            # Nothing is made between these two: what the collector finalizes may send as well.
            self._out.append(packed)
            pending.append(call)
            if len(pending) >= self._limit:
                self._room = False
            if at_once:
                self._context.run(self._flush)
        else:
            self._owner.waiting.append((future, monotonic() + timeout, packed))
            self._owner.watch()
        return future

    def post(self, packed: bytes) -> None:
        """Queue one packed command whose reply nobody wants; dropped where there is no room."""
        if self._room and get_running_loop() is self._loop:
            self._enqueue((None, 0.0, packed))

    def ask(self, packed: bytes, timeout: float) -> asyncio.Future[Reply]:
        """:meth:`send` past the queue of those who wait: handshakes and probes."""
        future = self._create_future()
        if self.open:
            self._enqueue((future, monotonic() + timeout, packed))
        else:
            future.set_exception(gone(self._owner.where, "the connection is closed", "none"))
        return future

    def take(self, call: Call, before: bytes | None = None) -> None:
        """Queue a call that another server sent here, right behind a command ``before`` it."""
        if self._ready:
            if before is not None:
                self._enqueue((None, 0.0, before))
            self._enqueue(call)
        else:
            self._owner.waiting.append(call)
            self._owner.watch()

    def leave(self, channel: bytes) -> None:
        """Unsubscribe from a channel.

        The answer is a push, or an error where the channel's slot was taken from the server;
        and then the same push came unasked before it. So pushes answer nothing here: the answer
        to the HELLO behind it, which is never an error, says that this call was answered.
        """
        if self.open:
            self._enqueue((None, 0.0, pack("SUNSUBSCRIBE", channel)))
            self._enqueue((None, 0.0, _HELLO))

    def begin(self) -> None:
        """From now on :meth:`send` finds room. Those who wait come in at :meth:`admit`."""
        self._ready = self._room = True

    def admit(self) -> None:
        """Let in as many of those who wait as there is room for, the oldest first."""
        waiting, pending = self._owner.waiting, self._pending
        while waiting and len(pending) < self._limit:
            call = waiting.popleft()
            if call[0] is None or not call[0].done():
                self._enqueue(call)
        self._room = len(pending) < self._limit

    def retire(self) -> None:
        """Take no more calls, and close when those in flight are answered."""
        self._retiring, self._ready, self._room = self._ready, False, False
        if not self._pending or not self._retiring:
            self.lose()

    def lose(self) -> None:
        """Close at once; whatever is in flight fails as unknown."""
        if self._transport is not None:
            self._transport.abort()
        self._fail_all("the connection was given up")

    def expire(self, now: float) -> int:
        """Fail every call past its deadline; how many. They keep their places."""
        expired = 0
        for future, deadline, _ in self._pending:
            if deadline <= now and future is not None and not future.done():
                future.set_exception(late(self._owner.where, "unknown"))
                expired += 1
        return expired

    @property
    def ready(self) -> bool:
        """Whether the handshake is done and the socket still stands."""
        return self._ready

    @property
    def in_flight(self) -> int:
        """Calls that have not been answered, abandoned ones included."""
        return len(self._pending)

    @property
    def overdue_since(self) -> float | None:
        """The deadline of the oldest call in flight, None without one."""
        return self._pending[0][1] if self._pending else None

    @property
    def attached(self) -> bool:
        """Whether there is a socket that asyncio has not yet reported as closed."""
        return self._transport is not None and not self.closed.done()

    def tune(self, *, keepalive: bool) -> None:
        """Set the options of a TCP socket."""
        sock = self._transport and self._transport.get_extra_info("socket")
        if sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, keepalive)

    def disown(self) -> None:
        """In a forked child: let go of the parent's socket."""
        disown(self._transport and self._transport.get_extra_info("socket"))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        self._transport = cast(asyncio.Transport, transport)
        self.open = True

    def data_received(self, data: bytes) -> None:
        """Called by asyncio: resolve calls in the order they were sent."""
        gets, pending = self._gets, self._pending
        self.received = True
        try:
            self._feed(data)
            reply = gets()
            while reply is not _NOTHING:
                kind = type(reply)
                if kind is hiredis.PushNotification:
                    if reply[0] != b"ssubscribe" or not self._confirms(reply):
                        self._owner.pushed(reply)
                elif kind is hiredis.ReplyError:
                    self._refuse(pending.popleft(), reply)
                else:
                    future, _, packed = pending.popleft()
                    if future is None:
                        if packed.startswith(_LEAVE):
                            pending.popleft()  # it is the answer to the HELLO behind it
                    elif not future.done():
                        future.set_result(reply)
                        self.resolved = True
                reply = gets()
        except (hiredis.ProtocolError, IndexError):
            self.lose()
            return
        if not self._room:
            self._make_room()

    def pause_writing(self) -> None:
        """Called by asyncio when the socket is full: hold back what is not written."""
        self._paused = True

    def resume_writing(self) -> None:
        """Called by asyncio when the socket has drained."""
        self._paused = False
        self._flush()

    def connection_lost(self, error: Exception | None) -> None:
        """Called by asyncio."""
        self._fail_all(f"the connection was lost ({error or 'closed by the server'})")
        if not self.closed.done():
            self.closed.set_result(None)

    def _enqueue(self, call: Call) -> None:
        if not self._out:
            self._call_soon(self._flush, context=self._context)
        self._out.append(call[2])
        self._pending.append(call)

    def _flush(self) -> None:
        if self._out and not self._paused and self._transport is not None:
            out, self._out = self._out, []  # whoever sends while this is written is not among it
            try:
                self._transport.write(b"".join(out) if len(out) > 1 else out[0])
            except Exception as error:
                self._transport.abort()
                self._fail_all(f"the connection took no bytes ({error!r})")
                return
            self.writes += 1
            self._alone = len(self._pending) == 1
            if not self.watched:
                self._owner.watch()

    def _refuse(self, call: Call, reply: hiredis.ReplyError) -> None:
        future, deadline, packed = call
        text = str(reply)
        word = text.partition(" ")[0]
        if word == "NOSCRIPT":
            full = in_full(packed)
            if full is not None:
                if future is None or not future.done():
                    self._enqueue((future, deadline, full))
                return
        if word in REDIRECTS and self._owner.redirected(call, text):
            return
        if future is not None and not future.done():
            error = error_from_reply(text, self._owner.where)
            error.__cause__ = reply
            future.set_exception(error)
            self.resolved = True
        if word in RECONNECT_ON and self._ready:
            self.retire()

    def _confirms(self, message: list[Reply]) -> bool:
        """Whether a push is the reply to the oldest call: subscribing has no other."""
        pending = self._pending
        if not pending or pending[0][2] != pack(message[0].upper(), message[1]):
            return False
        future = pending.popleft()[0]
        if future is not None and not future.done():
            future.set_result(message)
            self.resolved = True
        return True

    def _make_room(self) -> None:
        if self._ready:
            self.admit()
        elif self._retiring and not self._pending:
            self.lose()

    def _fail_all(self, why: str) -> None:
        if not self.open:
            return
        self.open = self._ready = self._room = False
        pending, written = self._pending, len(self._pending) - len(self._out)
        self._pending, self._out = deque(), []
        for place, (future, _, _) in enumerate(pending):
            if future is not None and not future.done():
                outcome: WriteOutcome = "unknown" if place < written else "none"
                future.set_exception(gone(self._owner.where, why, outcome))
        self._owner.lost(self)


def late(where: str, outcome: WriteOutcome) -> BackendTimeout:
    """The error of a call that was not answered in time."""
    done = "it may have been executed" if outcome == "unknown" else "it was not sent"
    return BackendTimeout(
        f"Redis at {where} did not answer in time; {done}. If this repeats, look at the server's "
        "load (SLOWLOG GET) and at the network, or allow more time (RedisConfig.socket_timeout)",
        backend=BACKEND,
        outcome=outcome,
    )


def gone(where: str, why: str, outcome: WriteOutcome) -> BackendUnavailable:
    """The error of a call whose connection went away."""
    done = "the command may have been executed" if outcome == "unknown" else "nothing was sent"
    return BackendUnavailable(
        f"Redis at {where}: {why}; {done}. The client reconnects by itself",
        backend=BACKEND,
        outcome=outcome,
    )


def disown(sock: Any) -> None:
    """In a forked child: let go of the parent's socket without a word to either end.

    The descriptor is pointed elsewhere instead of closed, because closing it through asyncio
    would take it out of the event loop that the parent still waits on.
    """
    if sock and sock.fileno() >= 0:
        nowhere = os.open(os.devnull, os.O_RDWR)
        os.dup2(nowhere, sock.fileno())
        os.close(nowhere)
