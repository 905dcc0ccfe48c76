"""The two sorts of bay: of an event loop, and of all threads."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref
from collections.abc import AsyncGenerator
from typing import Any, cast

from forze_redis.driver.guard import Guard
from forze_redis.driver.limit import Bay, ConnectionLimit, PoolTimeout, Turn
from forze_redis.driver.parting import Twin, abort, bury, drop, part, socket_of

_TURNS_TO_CLOSE = 3
"""Of the event loop: of TLS first the upper half closes, then the socket below it."""


class LoopBay(Bay):
    """The connections of the event loop that it is made in; they go when the loop ends.

    ``open`` are all of them until the loop itself has closed them: one that another thread took
    away to close it goes with the loop too, if that comes first.
    """

    def __init__(self, limit: ConnectionLimit) -> None:
        super().__init__(limit)
        self.open: set[Any] = set()
        self.loop = asyncio.get_running_loop()
        self._until_the_end = _hold(weakref.ref(self))
        if not getattr(self.loop, "_asyncgens_shutdown_called", False):
            with contextlib.suppress(StopIteration):
                self._until_the_end.asend(None).send(None)

    @property
    def dead(self) -> bool:
        """Whether the loop was closed."""
        return self.loop.is_closed()

    def left(self) -> list[Any]:
        """Every connection that the loop has not closed."""
        return list(self.open)

    def close(self, connection: Any) -> Twin:
        """Send the end; the loop itself clears up when it comes to it."""
        twin = part(socket_of(connection))
        try:
            if self._is_running_here():
                self._abort(connection)
            else:
                self.loop.call_soon_threadsafe(self._abort, connection)
        except RuntimeError:
            bury(connection)
            self.open.discard(connection)
        return twin

    def _abort(self, connection: Any) -> None:
        abort(connection)
        self.open.discard(connection)

    async def turn(self, guard: Guard, timeout: float) -> Turn:
        """A granted turn, within ``timeout`` seconds; what ``guard`` and the limit raise."""
        guard.admit()
        turn = self.limit.take(self)
        if turn is None:
            turn = await self._wait(timeout)
            try:
                guard.admit()  # the server may have gone while we waited
            except BaseException:
                await _gone(turn)
                raise
        return turn

    async def _wait(self, timeout: float) -> Turn:
        woken = self.loop.create_future()

        def wake() -> None:
            if self._is_running_here():
                _set(woken)
            else:
                self.loop.call_soon_threadsafe(_set, woken)

        turn = cast(Turn, self.limit.take(self, wake))
        try:
            if not turn.granted:
                async with asyncio.timeout(timeout):
                    await woken
        except TimeoutError:
            if self.limit.leave(turn):
                raise PoolTimeout(self.limit.n, timeout) from None
        except BaseException:
            if not self.limit.leave(turn):
                await _gone(turn)
            raise
        return turn

    def _is_running_here(self) -> bool:
        return asyncio._get_running_loop() is self.loop


async def _gone(turn: Turn) -> None:
    parting = turn.give_up()
    if parting is not None:
        await parting.gone()


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _hold(held: weakref.ref[LoopBay]) -> AsyncGenerator[None, None]:
    """Ends with the event loop, and the bay with it."""
    try:
        yield
    finally:
        bay = held()
        if bay is not None:
            for connection in bay.limit.end(bay):
                abort(connection)
            for _ in range(_TURNS_TO_CLOSE):
                await asyncio.sleep(0)


class ThreadBay(Bay):
    """The connections that any thread may use."""

    def close(self, connection: Any) -> Twin:
        """Send the end, and close."""
        twin = part(socket_of(connection))
        drop(connection)
        return twin

    def turn(self, guard: Guard, timeout: float) -> Turn:
        """A granted turn, within ``timeout`` seconds; what ``guard`` and the limit raise."""
        guard.admit()
        turn = self.limit.take(self)
        if turn is None:
            turn = self._wait(timeout)
            try:
                guard.admit()  # the server may have gone while we waited
            except BaseException:
                _wait_gone(turn)
                raise
        return turn

    def _wait(self, timeout: float) -> Turn:
        woken = threading.Event()
        turn = cast(Turn, self.limit.take(self, woken.set))
        try:
            came = turn.granted or woken.wait(timeout)
        except BaseException:  # raised by the handler of a signal
            if not self.limit.leave(turn):
                _wait_gone(turn)
            raise
        if not came and self.limit.leave(turn):
            raise PoolTimeout(self.limit.n, timeout)
        return turn


def _wait_gone(turn: Turn) -> None:
    parting = turn.give_up()
    if parting is not None:
        parting.wait()
