"""Locks on the server: one string that holds the owner and its token, with the lease as TTL.

::

    {lock}            owner|token            the lock, PX the lease
    {lock}:fence      token                  the last one given; no TTL, never deleted
    {lock}:readers    {owner: end}           who reads, of a read/write lock
    {lock}:queue      {owner: ticket}        who waits, in the order of arrival
    {lock}:waiting    {owner: end}           until when each of them keeps its place
    {lock}:turns:{process}                   the channel on which those of a process are called

A lock is a read/write lock that nobody reads; the scripts are the same. The queue is gone a
few seconds after the last one who waited.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from types import TracebackType
from typing import Any, Generic, TypeVar

from forze.application.integrations.locks.line import LOOK_SECONDS, WAITER_SECONDS
from forze.application.integrations.locks.names import encode_name
from forze.application.integrations.locks.store import Granted, Heard, Look, Refused
from forze_redis.client import RedisClient
from forze_redis.config import RedisDistributedLockConfig
from forze_redis.keys import ResourceKeys
from forze_redis.wire.scripts import load_script
from forze_redis.wire.subscriptions import Subscription

L = TypeVar("L")

ACQUIRE = load_script("lock_acquire")
EXTEND = load_script("lock_extend")
RELEASE = load_script("lock_release")
WAIT = load_script("lock_wait")

WAITER_MS = int(WAITER_SECONDS * 1000)


def sleepless_clock() -> float:
    """Seconds that go on while the machine sleeps, where the system counts them."""
    return time.clock_gettime(_CLOCK)


_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class RedisLocks:
    """The locks, or read/write locks, of one resource. Implements ``LockStore``."""

    def __init__(
        self,
        client: RedisClient,
        config: RedisDistributedLockConfig,
        *,
        resource: str,
        ttl: timedelta,
    ) -> None:
        self._client = client
        self._keys = ResourceKeys(client, config, resource)
        self._lease_ms = lease_ms(ttl)

    def open(self, key: str, *, shared: bool = False) -> Opened[RedisLock]:
        name = self._keys.of(encode_name(key))
        return Opened(
            self._client.hold(), lambda here: RedisLock(here, name, self._lease_ms, shared=shared)
        )


class Opened(Generic[L]):
    """A block with a lock that is kept by the client which serves the route it begins in."""

    __slots__ = ("_hold", "_lock")

    def __init__(
        self, hold: AbstractAsyncContextManager[RedisClient], lock: Callable[[RedisClient], L]
    ) -> None:
        self._hold = hold
        self._lock = lock

    async def __aenter__(self) -> L:
        return self._lock(await self._hold.__aenter__())

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._hold.__aexit__(kind, error, trace)


class RedisStored:
    """What every lock on a server has. Half of ``StoredLock``."""

    look_seconds = LOOK_SECONDS

    def __init__(self, client: RedisClient, name: str, lease_ms: int) -> None:
        self._client = client
        self._name = name
        self._lease_ms = lease_ms
        self._fence = f"{name}:fence"
        self._line = f"{name}:queue", f"{name}:waiting"
        self._turns = f"{name}:turns:"

    @property
    def address(self) -> Hashable:
        return self._client, self._name

    @property
    def clock(self) -> Callable[[], float]:
        return sleepless_clock

    async def subscribe(self, process: str, heard: Heard) -> Subscription:
        return await self._client.subscribe(
            self._turns + process,
            lambda called: heard(None if called is None else (called.decode(),)),
        )


class RedisLock(RedisStored):
    """One lock. Implements ``InspectedLock``; each call is one round trip."""

    def __init__(self, client: RedisClient, name: str, lease_ms: int, *, shared: bool) -> None:
        super().__init__(client, name, lease_ms)
        self._shared = int(shared)
        self._state = name, f"{name}:readers"

    async def attempt(self, owner: str, *, waits: bool) -> Granted | Refused:
        lock, readers = self._state
        return answered(
            await self._client.run(
                ACQUIRE,
                (lock, self._fence, readers, *self._line),
                (owner, self._shared, self._lease_ms, WAITER_MS if waits else 0),
            )
        )

    async def extend(self, owner: str, token: int | None) -> bool:
        args = owner, "" if token is None else token, self._shared, self._lease_ms
        return bool(await self._client.run(EXTEND, self._state, args))

    async def release(self, owner: str, token: int | None) -> bool:
        args = owner, "" if token is None else token, self._shared
        keys = *self._state, *self._line, self._turns
        return bool(await self._client.run(RELEASE, keys, args))

    async def look(self, owners: Sequence[str]) -> Look:
        keys = *self._state, *self._line, self._turns
        return looked(await self._client.run(WAIT, keys, (WAITER_MS, *owners)))

    async def holder(self) -> str | None:
        value: bytes | None = await self._client.call("GET", self._name)
        return None if value is None else value.rpartition(b"|")[0].decode(errors="replace")

    async def remaining_seconds(self) -> float | None:
        milliseconds: int = await self._client.call("PTTL", self._name)
        return None if milliseconds < 0 else milliseconds / 1000


def answered(reply: Any) -> Granted | Refused:
    """What an acquiring script answered."""
    granted, number = reply
    return Granted(number) if granted else Refused(number / 1000)


def looked(reply: Any) -> Look:
    """What a waiting script answered."""
    free_in, *called = reply
    return Look(free_in / 1000, tuple(each.decode() for each in called))


def lease_ms(ttl: timedelta) -> int:
    """A lease in whole milliseconds, as the server counts."""
    return ttl // timedelta(milliseconds=1)
