"""The connections of one client on one event loop.

A caller takes an idle connection, opens one while there are fewer than ``max_size``, or
waits its turn, first come first served, up to a deadline. A connection comes back exactly
once: clean ones at once, those whose statement was abandoned only after they answered
again, lost ones never.

asyncpg's own pool is not used: it resets each connection with a round trip when it comes
back, and hands out proxies.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from forze.errors import BackendTimeout, BackendUnavailable
from forze_postgres.config import PostgresConfig, seconds
from forze_postgres.connection import Connection, connect
from forze_postgres.dsn import Dsn
from forze_postgres.errors import BACKEND, RAISED

_RECOVER_SECONDS = 2.0
_CLOSE_SECONDS = 2.0


class Pool:
    """At most ``config.max_size`` connections, for the event loop that made it."""

    def __init__(self, dsn: Dsn, config: PostgresConfig) -> None:
        self.loop = asyncio.get_running_loop()
        self._dsn = dsn
        self._config = config
        self._idle: deque[Connection] = deque()
        self._waiting: deque[asyncio.Future[Connection | None]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._all: set[Connection] = set()
        self._slots = 0
        self._closed = False

    # -- what it holds -------------------------------------------------------

    @property
    def size(self) -> int:
        """Connections open or being opened."""
        return self._slots

    @property
    def idle(self) -> int:
        """Connections nobody uses."""
        return len(self._idle)

    @property
    def waiting(self) -> int:
        """Callers that wait for a connection."""
        return sum(not each.done() for each in self._waiting)

    # -- taking and giving back ----------------------------------------------

    async def fill(self) -> None:
        """Open ``min_size`` connections, one of them even if that is zero, and check the server."""
        count = max(1, self._config.min_size)
        self._slots += count
        results = await asyncio.gather(
            *(self._open_in_slot() for _ in range(count)), return_exceptions=True
        )
        for each in results:
            if not isinstance(each, BaseException):
                self.release(each)
        for each in results:
            if isinstance(each, BaseException):
                raise each

    async def acquire(self, deadline: float | None = None) -> Connection:
        """A connection of one's own; ``deadline`` on the loop's clock shortens the wait.

        Raises ``BackendTimeout`` when the pool stays full, ``BackendUnavailable`` or
        ``ConfigurationError`` when a new connection cannot be opened.
        """
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed():
                return connection
            self._drop(connection)
        if self._closed:
            raise BackendUnavailable("the PostgreSQL client is closed", backend=BACKEND)
        if self._slots >= self._config.max_size:
            handed = await self._wait_turn(deadline)
            if handed is not None:
                return handed
        else:
            self._slots += 1
        return await self._open_in_slot(deadline)

    def release(self, connection: Connection) -> None:
        """Give back a connection that is ready for the next statement, or lost."""
        if connection.is_closed() or self._closed:
            self.discard(connection)
            return
        waiter = self._next_waiter()
        if waiter is not None:
            waiter.set_result(connection)
        else:
            self._idle.append(connection)

    def discard(self, connection: Connection) -> None:
        """Close a connection without asking it; its place is free for a new one."""
        with suppress(Exception):
            connection.terminate()
        self._drop(connection)

    def recover(self, connection: Connection) -> None:
        """Give back a connection whose statement was abandoned, once it answers again."""
        if connection.is_closed() or self._closed:
            self.discard(connection)
            return
        self._apart(self._recovered(connection))

    def retire(self, connection: Connection) -> None:
        """Close a connection whose answer was lost, after its cancellation was sent."""
        if connection.is_closed() or self._closed:
            self.discard(connection)
            return
        self._apart(self._retired(connection))

    async def _retired(self, connection: Connection) -> None:
        try:
            async with asyncio.timeout(_RECOVER_SECONDS):
                await connection.execute("SELECT 1")  # waits for the cancellation first
        finally:
            self.discard(connection)

    async def _recovered(self, connection: Connection) -> None:
        try:
            async with asyncio.timeout(_RECOVER_SECONDS):
                await connection.execute(
                    "ROLLBACK" if connection.is_in_transaction() else "SELECT 1"
                )
                if connection.is_in_transaction():
                    await connection.execute("ROLLBACK")
        except BaseException:
            self.discard(connection)
            raise
        self.release(connection)

    # -- inside --------------------------------------------------------------

    async def _wait_turn(self, deadline: float | None) -> Connection | None:
        """A connection handed over, or None for a free slot to open one in."""
        limit = self.loop.time() + seconds(self._config.acquire_timeout)
        turn: asyncio.Future[Connection | None] = self.loop.create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout_at(limit if deadline is None else min(limit, deadline)):
                connection = await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._pass_on(turn.result())
            else:
                with suppress(ValueError):
                    self._waiting.remove(turn)
            if isinstance(error, TimeoutError):
                raise self._full(deadline is not None and deadline < limit) from None
            raise
        if connection is not None and connection.is_closed():
            self._all.discard(connection)
            return None
        return connection

    def _full(self, by_deadline: bool) -> BackendTimeout:
        limit = "the deadline of the call" if by_deadline else "PostgresConfig.acquire_timeout"
        return BackendTimeout(
            f"all {self._config.max_size} PostgreSQL connections stayed busy until {limit}; "
            "raise max_size, or hold transactions for a shorter time",
            backend=BACKEND,
        )

    def _pass_on(self, handed: Connection | None) -> None:
        if handed is None:
            self._free_slot()
        else:
            self.release(handed)

    def _next_waiter(self) -> asyncio.Future[Connection | None] | None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                return waiter
        return None

    def _drop(self, connection: Connection) -> None:
        if connection in self._all:
            self._all.discard(connection)
            self._free_slot()

    def _free_slot(self) -> None:
        waiter = self._next_waiter()
        if waiter is not None:
            waiter.set_result(None)
        else:
            self._slots -= 1

    async def _open_in_slot(self, deadline: float | None = None) -> Connection:
        try:
            connection = await connect(self._dsn, self._config, deadline)
        except BaseException:
            self._free_slot()
            raise
        if self._closed:
            connection.terminate()
            self._free_slot()
            raise BackendUnavailable("the PostgreSQL client was closed", backend=BACKEND)
        self._all.add(connection)
        return connection

    def _apart(self, work: Coroutine[Any, Any, None]) -> None:
        task = self.loop.create_task(work, name="forze-postgres-recover")
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # seen: the connection was discarded

    # -- the end -------------------------------------------------------------

    async def close(self) -> None:
        """Close every connection, those in use included; waiters fail. Bounded in time."""
        self._closed = True
        while (waiter := self._next_waiter()) is not None:
            waiter.set_exception(
                BackendUnavailable("the PostgreSQL client was closed", backend=BACKEND)
            )
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        idle, self._idle = tuple(self._idle), deque()
        await asyncio.gather(*(_close(each) for each in idle))
        for each in tuple(self._all):
            self.discard(each)

    def abandon(self) -> None:
        """Drop everything without waiting; for a pool whose loop is not the running one."""
        self._closed = True
        for each in tuple(self._all):
            with suppress(Exception):
                each.terminate()
        self._all.clear()
        self._idle.clear()


async def _close(connection: Connection) -> None:
    with suppress(*RAISED):
        await connection.close(timeout=_CLOSE_SECONDS)
