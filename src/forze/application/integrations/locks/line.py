"""Standing in line: one subscription and one look now and then for all who wait in a process.

The line itself, in the order of arrival, is the backend's. Whoever gives a lock back has
the next in line called; nobody else tries. Calls are heard at most once, so the process
looks at the line, too: when the lease in the way should have ended, and twice a second, which
at the same time tells the backend who waits still. It looks once more when it has begun
to listen: what was called before that, nobody heard.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections.abc import Coroutine, Hashable, Sequence
from typing import Any

from forze.application.integrations.locks.names import process_name
from forze.application.integrations.locks.store import StoredLock, Subscription
from forze.errors import ForzeError

WAITER_SECONDS = 1.5
"""How long somebody who waits keeps the place in line without saying so again."""

LOOK_SECONDS = 0.5
"""How often a process looks at its lines, and a holder at the clock, whatever is heard."""

_JITTER_SECONDS = (0.001, 0.005)
"""After a lease should have ended, so that not every process looks at the same moment."""


class Line:
    """Those of this process who wait for one lock, each with the event that calls it."""

    def __init__(self, stored: StoredLock, process: str) -> None:
        self._stored = stored
        self._process = process
        self.loop = asyncio.get_running_loop()
        self._turns: dict[str, asyncio.Event] = {}
        self._subscription: Subscription | None = None
        self._subscribing: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._once_more = False
        self._closed = False

    def join(self, owner: str) -> asyncio.Event:
        """Wait under this name; the event is set when it is to try again."""
        turn = self._turns[owner] = asyncio.Event()
        return turn

    def leave(self, owner: str) -> bool:
        """Wait no longer; whether nobody else does."""
        self._turns.pop(owner, None)
        if not self._turns:
            self._close()
        return self._closed

    async def listen(self) -> None:
        """Return when calls are heard, and those before will be seen; raises what the backend
        raises."""
        while self._subscription is None:
            if self._subscribing is None:
                self._subscribing = self._apart(self._subscribe(), "forze-lock-subscribe")
            await asyncio.shield(self._subscribing)

    def look_in(self, free_in: float) -> None:
        """Look when the lease in the way should have ended, and soon in any case."""
        pause = self._stored.look_seconds
        if free_in > 0:
            pause = min(pause, free_in + random.uniform(*_JITTER_SECONDS))
        due = self.loop.time() + pause
        if self._closed or (self._timer is not None and self._due <= due):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._due = due
        self._timer = self.loop.call_later(pause, self._look, context=contextvars.Context())

    async def _subscribe(self) -> None:
        try:
            subscription = await self._stored.subscribe(self._process, self._heard)
        finally:
            self._subscribing = None
        if self._closed:
            subscription.close()
        else:
            self._subscription = subscription
            self._look()

    def _heard(self, called: Sequence[str] | None) -> None:
        if called is None:
            self._look()
            return
        for owner in called:
            if (turn := self._turns.get(owner)) is not None:
                turn.set()

    def _look(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        if self._closed:
            return
        if self._looking is not None:
            self._once_more = True
        else:
            self._looking = self._apart(self._see(), "forze-lock-look")

    async def _see(self) -> None:
        try:
            look = await self._stored.look(tuple(self._turns))
        except ForzeError:  # whoever waits asks by itself, and is told what is wrong
            self.look_in(self._stored.look_seconds / 4)
        else:
            self._heard(look.called)
            self.look_in(look.free_in)
        finally:
            self._looking = None
        if self._once_more:
            self._once_more = False
            self._look()

    def _apart(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task: asyncio.Task[None] = self.loop.create_task(
            work, name=name, context=contextvars.Context()
        )
        task.add_done_callback(_retrieved)
        return task

    def _close(self) -> None:
        self._closed = True
        for each in (self._timer, self._looking):
            if each is not None:
                each.cancel()
        if self._subscription is not None:
            self._subscription.close()


class Lines:
    """The lines of this process, as long as somebody stands in them."""

    def __init__(self) -> None:
        self.process = process_name()
        self._lines: dict[Hashable, Line] = {}

    def join(self, stored: StoredLock, owner: str) -> tuple[Line, asyncio.Event]:
        """Stand in the line of a lock, made if this is the first to wait."""
        line = self._lines.get(stored.address)
        if line is None or line.loop is not asyncio.get_running_loop():
            line = self._lines[stored.address] = Line(stored, self.process)
        return line, line.join(owner)

    def leave(self, stored: StoredLock, line: Line, owner: str) -> None:
        """Wait no longer."""
        if line.leave(owner) and self._lines.get(stored.address) is line:
            del self._lines[stored.address]


def _retrieved(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        task.exception()  # whoever waits for it is told; nobody has to
