"""A proxy that speaks RESP, to stage races between a client and a Redis or Valkey server.

It takes the byte streams apart into commands and replies, so that a test can stop one of
them by name and let it go when the other side of the race is in place::

    async with RespProxy(server.port) as proxy:
        await client.connect(proxy.dsn)
        fill = proxy.hold_request(script(FILL))
        reader = asyncio.create_task(query.get(id))
        await fill.seen()
        await command_port.update(...)
        fill.release()

Order is kept: what follows a held command or reply on its connection waits behind it,
other connections pass. Replies belong to requests by their order; pushes belong to none.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Literal, Protocol, Self, TypeAlias

Match: TypeAlias = Callable[[list[bytes]], bool]

_CONFIRMATIONS = (b">3\r\n$10\r\nssubscribe\r\n", b">3\r\n$12\r\nsunsubscribe\r\n")
"""Pushes that are the reply to a command."""

_READ_BYTES = 64 * 1024


class _Script(Protocol):
    @property
    def sha1(self) -> str: ...

    @property
    def source(self) -> str: ...


def command(*beginning: str | bytes) -> Match:
    """Matches commands that begin with these arguments, upper or lower case."""
    wanted = [each.encode() if isinstance(each, str) else each for each in beginning]
    wanted = [each.upper() for each in wanted]

    def match(args: list[bytes]) -> bool:
        return [each.upper() for each in args[: len(wanted)]] == wanted

    return match


def script(one: _Script) -> Match:
    """Matches calls of a script, by its digest or in full."""
    by_digest = command("EVALSHA", one.sha1)
    in_full = command("EVAL", one.source)
    return lambda args: by_digest(args) or in_full(args)


class Hold:
    """What :class:`RespProxy` was told to do to the commands that match."""

    def __init__(
        self, what: Literal["request", "reply", "drop", "delay"], match: Match, times: int | None
    ) -> None:
        self.what = what
        self.match = match
        self.times = times
        self.count = 0
        self.pause_seconds = 0.0
        self._seen = asyncio.Event()
        self._released = asyncio.Event()

    async def seen(self) -> None:
        """Return when the first match is held, or was dropped."""
        await self._seen.wait()

    def release(self) -> None:
        """Let go of what is held; from now on matches pass."""
        self.times = 0
        self._released.set()

    def takes(self, args: list[bytes]) -> bool:
        """Whether it applies to this command; counts it if so."""
        if (self.times is not None and self.count >= self.times) or not self.match(args):
            return False
        self.count += 1
        return True

    async def act(self) -> None:
        """Do it to a command or reply that has arrived."""
        self._seen.set()
        if self.what == "delay":
            await asyncio.sleep(self.pause_seconds)
        elif self.what != "drop":
            await self._released.wait()


class RespProxy:
    """Listens on a loopback port of its own and passes everything on to ``host:port``.

    An async context manager. ``commands`` has what passed by, the newest 10,000;
    ``connections`` counts those made so far.
    """

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self._host, self._to_port = host, port
        self._server: asyncio.Server | None = None
        self._holds: list[Hold] = []
        self._pairs: set[_Pair] = set()
        self._flow = asyncio.Event()
        self._flow.set()
        self.port = 0
        self.connections = 0
        self.commands: deque[list[bytes]] = deque(maxlen=10_000)

    @property
    def dsn(self) -> str:
        """Where clients connect."""
        return f"redis://127.0.0.1:{self.port}/0"

    async def __aenter__(self) -> Self:
        await self.accept()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.refuse()
        await asyncio.gather(*(pair.end() for pair in tuple(self._pairs)))

    def hold_request(self, match: Match, *, times: int | None = 1) -> Hold:
        """Stop matching commands before the server gets them, ``None``: all of them."""
        return self._hold(Hold("request", match, times))

    def hold_reply(self, match: Match, *, times: int | None = 1) -> Hold:
        """Let the server execute matching commands, and stop their replies."""
        return self._hold(Hold("reply", match, times))

    def drop_reply(self, match: Match, *, times: int | None = 1) -> Hold:
        """Let the server execute matching commands, then cut the connection instead of
        replying: what a client sees of a reply that was lost."""
        return self._hold(Hold("drop", match, times))

    def delay(self, seconds: float, match: Match = lambda _: True) -> Hold:
        """Send matching commands on only after a pause, until released."""
        hold = self._hold(Hold("delay", match, None))
        hold.pause_seconds = seconds
        return hold

    def cut(self) -> None:
        """Reset every connection; new ones are accepted."""
        for pair in tuple(self._pairs):
            pair.cut()

    def refuse(self) -> None:
        """Refuse new connections; those that stand, stand."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def accept(self) -> None:
        """Accept connections (again, on the same port), and end a black hole."""
        self._flow.set()
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    def black_hole(self) -> None:
        """Swallow time: connections stand and are accepted, and nothing moves any more."""
        self._flow.clear()

    def _hold(self, hold: Hold) -> Hold:
        self._holds.append(hold)
        return hold

    def take(self, args: list[bytes]) -> list[Hold]:
        """Note a command; what is to be done to it."""
        self.commands.append(args)
        return [hold for hold in self._holds if hold.takes(args)]

    async def flow(self) -> None:
        """Return at once, or when a black hole ends."""
        await self._flow.wait()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        pair = _Pair(self, reader, writer)
        self._pairs.add(pair)
        try:
            await pair.run(self._host, self._to_port)
        finally:
            self._pairs.discard(pair)


class _Pair:
    """One client's connection and the one to the server behind it."""

    def __init__(
        self, proxy: RespProxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._proxy = proxy
        self._client = reader, writer
        self._expected: deque[list[Hold]] = deque()
        self._task = asyncio.current_task()
        self._writers = [writer]

    async def run(self, host: str, port: int) -> None:
        """Pass everything on until either side ends."""
        pumps: list[asyncio.Task[None]] = []
        try:
            await self._proxy.flow()
            reader, writer = await asyncio.open_connection(host, port)
            self._writers.append(writer)
            pumps = [
                asyncio.create_task(self._requests(self._client[0], writer)),
                asyncio.create_task(self._replies(reader, self._client[1])),
            ]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            for pump in pumps:
                pump.cancel()
            self.cut()
            with contextlib.suppress(asyncio.CancelledError):  # ended while it was ending
                await asyncio.gather(*pumps, return_exceptions=True)

    def cut(self) -> None:
        """Reset both connections."""
        for writer in self._writers:
            writer.transport.abort()

    async def end(self) -> None:
        """Cut, and return when nothing of it is left."""
        self.cut()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async for frame in _frames(reader):
            holds = self._proxy.take(_arguments(frame))
            for hold in holds:
                if hold.what in ("request", "delay"):
                    await hold.act()
            await self._proxy.flow()
            self._expected.append([hold for hold in holds if hold.what in ("reply", "drop")])
            writer.write(frame)
            await writer.drain()

    async def _replies(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async for frame in _frames(reader):
            pushed = frame[:1] == b">" and not frame.startswith(_CONFIRMATIONS)
            holds = self._expected.popleft() if not pushed and self._expected else []
            for hold in holds:
                await hold.act()
                if hold.what == "drop":
                    return
            await self._proxy.flow()
            writer.write(frame)
            await writer.drain()


async def _frames(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """The stream, frame by frame; ends where the connection does."""
    buffer = b""
    with contextlib.suppress(OSError):
        while data := await reader.read(_READ_BYTES):
            buffer += data
            start = 0
            while (end := frame_end(buffer, start)) is not None:
                yield buffer[start:end]
                start = end
            buffer = buffer[start:]


def frame_end(buffer: bytes, start: int) -> int | None:
    """Where the RESP value that begins at ``start`` ends; None while it is incomplete."""
    at, values = start, 1
    while values:
        line_end = buffer.find(b"\r\n", at)
        if line_end < 0:
            return None
        kind, length = buffer[at : at + 1], buffer[at + 1 : line_end]
        at = line_end + 2
        values -= 1
        if kind in b"$=!" and length != b"-1":
            at += int(length) + 2
        elif kind in b"*~>" and length != b"-1":
            values += int(length)
        elif kind == b"%":
            values += 2 * int(length)
        elif kind == b"|":
            values += 2 * int(length) + 1
    return at if at <= len(buffer) else None


def _arguments(frame: bytes) -> list[bytes]:
    """The arguments of a command; one sent inline is split at its spaces."""
    if frame[:1] != b"*":
        return frame.split()
    args: list[bytes] = []
    at = frame.find(b"\r\n") + 2
    while at < len(frame):
        line_end = frame.find(b"\r\n", at)
        start, length = line_end + 2, int(frame[at + 1 : line_end])
        args.append(frame[start : start + length])
        at = start + length + 2
    return args
