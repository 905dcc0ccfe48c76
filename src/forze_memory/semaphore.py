"""Semaphores in process: the transitions of ``integrations.locks.protocol``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta

from forze.application.contracts.dlock import SemaphoreSpec
from forze.application.integrations.locks.names import encode_name
from forze.application.integrations.locks.protocol import SemaphoreState
from forze.application.integrations.locks.store import Granted, Look, Refused
from forze_memory.addresses import ResourceAddresses
from forze_memory.config import MemoryResourceConfig
from forze_memory.dlock import SECOND, WAIT, MemoryLockServer, MemoryStored, answered, stamp


class MemorySemaphores:
    """The semaphores of one resource. Implements ``LockStore``."""

    def __init__(
        self,
        server: MemoryLockServer[SemaphoreState],
        config: MemoryResourceConfig,
        spec: SemaphoreSpec,
    ) -> None:
        self._server = server
        self._addresses = ResourceAddresses(config, spec.name, f"semaphore {spec.name!r}")
        self._spec = spec

    @asynccontextmanager
    async def open(self, key: str, *, shared: bool = False) -> AsyncIterator[MemorySemaphore]:
        address = self._addresses.of(encode_name(key))
        yield MemorySemaphore(self._server, address, self._spec.ttl, self._spec.permits)


class MemorySemaphore(MemoryStored[SemaphoreState]):
    """One semaphore. Implements ``CountedPermits``."""

    def __init__(
        self, server: MemoryLockServer[SemaphoreState], address: str, ttl: timedelta, permits: int
    ) -> None:
        super().__init__(server, address, ttl)
        self._permits = permits

    async def attempt(self, owner: str, *, waits: bool) -> Granted | Refused:
        state, now = await self._reached()
        wait = WAIT if waits else 0
        return answered(
            state.acquire(
                owner, self._permits, now=now, stamp=stamp(), lease=self._lease, wait=wait
            )
        )

    async def extend(self, owner: str, token: int | None) -> bool:
        state, now = await self._seen(), self._server.now()
        return state.extend(owner, now=now, lease=self._lease)

    async def release(self, owner: str, token: int | None) -> bool:
        state, now = await self._seen(), self._server.now()
        held, called = state.release(owner, self._permits, now=now)
        self._server.call(self._address, called)
        return held

    async def look(self, owners: Sequence[str]) -> Look:
        state, now = await self._reached()
        free_in, called = state.look(owners, self._permits, now=now, wait=WAIT)
        self._server.call(self._address, called)
        return Look(free_in / SECOND, tuple(called))

    async def held(self) -> int:
        return len((await self._seen()).holders)
