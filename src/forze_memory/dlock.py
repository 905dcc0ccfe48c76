"""Locks and read/write locks in process: the transitions of ``integrations.locks.protocol``.

Calls reach those who wait in this process at once; the rest is as on a server, on the
module's clock.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Generic, TypeVar

from forze.application.integrations.locks.line import LOOK_SECONDS, WAITER_SECONDS
from forze.application.integrations.locks.names import encode_name
from forze.application.integrations.locks.protocol import Answer, LockState, SemaphoreState
from forze.application.integrations.locks.store import Granted, Heard, Look, Refused
from forze_memory.addresses import ResourceAddresses
from forze_memory.config import MemoryResourceConfig

S = TypeVar("S", LockState, SemaphoreState)

SECOND = 1_000_000
WAIT = int(WAITER_SECONDS * SECOND)
_LOOK_SECONDS = 0.02
"""Where the module's clock is not the event loop's, its movement is looked for."""


class MemoryLockServer(Generic[S]):
    """States by address, and who listens there: what all resources of one module share.

    Of a lock that is free, what remains is its last token.
    """

    def __init__(self, clock: Callable[[], float], make: Callable[[], S]) -> None:
        self.clock = clock
        self.look_seconds = LOOK_SECONDS if clock is time.monotonic else _LOOK_SECONDS
        self._make: Callable[[], S] = make
        self._states: dict[str, S] = {}
        self._listeners: dict[str, list[Heard]] = {}

    def now(self) -> int:
        """Microseconds on the module's clock."""
        return int(self.clock() * SECOND)

    def state(self, address: str) -> S:
        """What there is, to be changed."""
        return self._states.setdefault(address, self._make())

    def seen(self, address: str) -> S:
        """What there is; where there is nothing, looking at it leaves nothing behind."""
        return self._states.get(address) or self._make()

    def listen(self, address: str, heard: Heard) -> MemorySubscription:
        """Call ``heard`` when the next in line are called."""
        self._listeners.setdefault(address, []).append(heard)
        return MemorySubscription(lambda: self._unlisten(address, heard))

    def call(self, address: str, called: Sequence[str]) -> None:
        """Call the next in line; whoever asked for that does not wait for them."""
        if called:
            for heard in self._listeners.get(address, ()):
                asyncio.get_running_loop().call_soon(heard, called)

    def _unlisten(self, address: str, heard: Heard) -> None:
        listeners = self._listeners.get(address, [])
        if heard in listeners:
            listeners.remove(heard)
            if not listeners:
                del self._listeners[address]


class MemorySubscription:
    """One listener."""

    def __init__(self, close: Callable[[], None]) -> None:
        self.close = close


class MemoryStored(Generic[S]):
    """What every lock in process has. Half of ``StoredLock``."""

    def __init__(self, server: MemoryLockServer[S], address: str, ttl: timedelta) -> None:
        self._server: MemoryLockServer[S] = server
        self._address = address
        self._lease = ttl // timedelta(microseconds=1)
        self.look_seconds = server.look_seconds

    @property
    def address(self) -> Hashable:
        return self._address

    @property
    def clock(self) -> Callable[[], float]:
        return self._server.clock

    async def subscribe(self, process: str, heard: Heard) -> MemorySubscription:
        await asyncio.sleep(0)
        return self._server.listen(self._address, heard)

    async def _reached(self) -> tuple[S, int]:
        """The state and the time, after the turn of the event loop that a server would take."""
        await asyncio.sleep(0)
        return self._server.state(self._address), self._server.now()

    async def _seen(self) -> S:
        """The state, to be looked at."""
        await asyncio.sleep(0)
        state = self._server.seen(self._address)
        state.prune(self._server.now())
        return state


class MemoryLocks:
    """The locks, or read/write locks, of one resource. Implements ``LockStore``."""

    def __init__(
        self,
        server: MemoryLockServer[LockState],
        config: MemoryResourceConfig,
        name: str,
        *,
        resource: str,
        ttl: timedelta,
    ) -> None:
        self._server = server
        self._addresses = ResourceAddresses(config, name, resource)
        self._ttl = ttl

    @asynccontextmanager
    async def open(self, key: str, *, shared: bool = False) -> AsyncIterator[MemoryLock]:
        address = self._addresses.of(encode_name(key))
        yield MemoryLock(self._server, address, self._ttl, shared=shared)


class MemoryLock(MemoryStored[LockState]):
    """One lock. Implements ``InspectedLock``."""

    def __init__(
        self,
        server: MemoryLockServer[LockState],
        address: str,
        ttl: timedelta,
        *,
        shared: bool,
    ) -> None:
        super().__init__(server, address, ttl)
        self._shared = shared

    async def attempt(self, owner: str, *, waits: bool) -> Granted | Refused:
        state, now = await self._reached()
        return answered(
            state.acquire(
                owner,
                shared=self._shared,
                now=now,
                stamp=stamp(),
                lease=self._lease,
                wait=WAIT if waits else 0,
            )
        )

    async def extend(self, owner: str, token: int | None) -> bool:
        state, now = await self._seen(), self._server.now()
        return state.extend(owner, token, shared=self._shared, now=now, lease=self._lease)

    async def release(self, owner: str, token: int | None) -> bool:
        state, now = await self._seen(), self._server.now()
        held, called = state.release(owner, token, shared=self._shared, now=now)
        self._server.call(self._address, called)
        return held

    async def look(self, owners: Sequence[str]) -> Look:
        state, now = await self._reached()
        free_in, called = state.look(owners, now=now, wait=WAIT)
        self._server.call(self._address, called)
        return Look(free_in / SECOND, tuple(called))

    async def holder(self) -> str | None:
        holding = (await self._seen()).holding
        return None if holding is None else holding.owner

    async def remaining_seconds(self) -> float | None:
        holding = (await self._seen()).holding
        return None if holding is None else (holding.until - self._server.now()) / SECOND


def stamp() -> int:
    """The time of day: tokens of a new process are above those of the one before it."""
    return time.time_ns() // 1000


def answered(answer: Answer) -> Granted | Refused:
    """What a transition answered, in seconds."""
    return Refused(answer.free_in / SECOND) if answer.token is None else Granted(answer.token)
