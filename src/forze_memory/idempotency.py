"""Idempotency records in process, by the transitions that define them, as they are."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta

from forze.application.contracts.deps import Resolver
from forze.application.contracts.idempotency import IdempotencySnapshot, IdempotencySpec
from forze.application.contracts.transaction import Transaction
from forze.application.integrations.idempotency import record as transitions
from forze.application.integrations.idempotency.names import record_parts
from forze.application.integrations.idempotency.port import StoredIdempotency
from forze.application.integrations.idempotency.record import Answer, Granted, Record
from forze.application.integrations.idempotency.store import Told
from forze_memory.addresses import ResourceAddresses
from forze_memory.config import MemoryResourceConfig
from forze_memory.keyspace import Keyspace

_MILLISECOND = timedelta(milliseconds=1)


class MemoryIdempotencyServer:
    """The records of one module, and who waits for them. ``clock`` answers seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.records: Keyspace[str, Record] = Keyspace()
        self.waiting: dict[str, set[Told]] = {}

    def now(self) -> int:
        """Milliseconds on the server's clock."""
        return int(self._clock() * 1000)

    def changed(self, name: str) -> None:
        """Wake those that wait for the record."""
        for each in self.waiting.get(name, ()):
            each.tell()


class MemoryIdempotency(StoredIdempotency):
    """Operations that run once per key, in process. Implements ``IdempotencyPort``."""

    def __init__(
        self,
        server: MemoryIdempotencyServer,
        spec: IdempotencySpec,
        config: MemoryResourceConfig,
        resolver: Resolver,
    ) -> None:
        addresses = ResourceAddresses(config, spec.name, f"idempotency {spec.name!r}")
        super().__init__(MemoryIdempotencyStore(server, addresses), spec, resolver)


class MemoryIdempotencyStore:
    """Records in a keyspace. Implements ``IdempotencyStore``."""

    def __init__(self, server: MemoryIdempotencyServer, addresses: ResourceAddresses) -> None:
        self._server = server
        self._addresses = addresses

    def name(self, operation: str, key: str) -> str:
        """The record's address."""
        return self._addresses.of(*record_parts(operation, key))

    def place(self) -> None:
        """One place."""

    @asynccontextmanager
    async def hold(self) -> AsyncIterator[MemoryIdempotencyStore]:
        """Itself: it is always open."""
        yield self

    def transaction(self) -> Transaction | None:
        """None, as with a server: an answer is stored when the transaction has committed."""
        return None

    async def claim(
        self, name: str, owner: str, payload_hash: str, lease: timedelta, retention: timedelta
    ) -> Answer:
        """Ask for the right to run."""
        now = await self._turn()
        before = self._server.records.get(name, now)
        lease_ms = lease // _MILLISECOND
        after, answer = transitions.claim(before, owner, payload_hash, lease_ms, now)
        if isinstance(answer, Granted):
            self._put(name, after, retention, now)
        return answer

    async def beat(
        self, name: str, owner: str, generation: int, lease: timedelta, retention: timedelta
    ) -> bool:
        """Keep up the lease."""
        now = await self._turn()
        before = self._server.records.get(name, now)
        lease_ms = lease // _MILLISECOND
        after, held = transitions.beat(before, owner, generation, lease_ms, now)
        if held:
            self._put(name, after, retention, now)
        return held

    async def complete(
        self,
        name: str,
        owner: str,
        generation: int,
        snapshot: IdempotencySnapshot,
        retention: timedelta,
    ) -> bool:
        """Store the answer."""
        now = await self._turn()
        before = self._server.records.get(name, now)
        after, stored = transitions.complete(before, owner, generation, snapshot)
        if after is not before:
            self._put(name, after, retention, now)
            self._server.changed(name)
        return stored

    async def release(self, name: str, owner: str, generation: int, retention: timedelta) -> bool:
        """Free the key."""
        now = await self._turn()
        before = self._server.records.get(name, now)
        after, freed = transitions.release(before, owner, generation)
        if freed:
            self._put(name, after, retention, now)
            self._server.changed(name)
        return freed

    @asynccontextmanager
    async def watch(self, name: str) -> AsyncIterator[Told]:
        """Hear of changes of the record."""
        told = Told()
        among = self._server.waiting.setdefault(name, set())
        among.add(told)
        try:
            yield told
        finally:
            among.discard(told)
            if not among and self._server.waiting.get(name) is among:
                del self._server.waiting[name]

    async def check(self) -> None:
        """There is nothing to compare."""

    async def _turn(self) -> int:
        """Let others run, as a round trip would; the time after that."""
        await asyncio.sleep(0)
        return self._server.now()

    def _put(self, name: str, record: Record | None, retention: timedelta, now: int) -> None:
        assert record is not None
        self._server.records.set(name, record, now + retention // _MILLISECOND, now)
