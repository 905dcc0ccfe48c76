"""Counters in process: integers by address, and the operations that were done already."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from forze.application.contracts.counter import CounterSpec
from forze.application.contracts.deps import Resolver
from forze.application.integrations.counting import Change, Counting, Operation
from forze.application.integrations.keys import encode_part
from forze_memory.addresses import ResourceAddresses
from forze_memory.config import MemoryResourceConfig
from forze_memory.keyspace import Keyspace


class MemoryCounterServer:
    """What all counters of one module share. ``clock`` answers seconds, and never goes back."""

    __slots__ = ("_clock", "operations", "values")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.values: dict[str, int] = {}
        self.operations: Keyspace[tuple[str, str], tuple[str, int]] = Keyspace()

    def now(self) -> int:
        """Milliseconds on the server's clock."""
        return round(self._clock() * 1000)


class MemoryCounter(Counting):
    """Counters in process. Implements ``CounterPort``."""

    def __init__(
        self,
        server: MemoryCounterServer,
        spec: CounterSpec,
        config: MemoryResourceConfig,
        resolver: Resolver,
    ) -> None:
        super().__init__(spec, resolver)
        self._server = server
        self._addresses = ResourceAddresses(config, spec.name, f"counter {spec.name!r}")

    def _address(self, suffix: str | None) -> str:
        parts = () if suffix is None else (encode_part(suffix, "suffix"),)
        return self._addresses.of(*parts)

    async def _add(
        self, address: str, suffix: str | None, change: Change, operation: Operation | None
    ) -> int:
        await asyncio.sleep(0)
        server, now = self._server, self._server.now()
        if operation is not None:
            before = server.operations.get((address, operation.id), now)
            if before is not None:
                if before[0] != operation.what:
                    raise self._other_operation(suffix, operation, before[0])
                return before[1]
        old = server.values.get(address, 0)
        if not change.fits(old):
            raise self._beyond(suffix, change, old)
        new = server.values[address] = old + change.by
        if operation is not None:
            done = operation.what, new
            until = now + self._operation_ms
            server.operations.set((address, operation.id), done, until, now)
        return new

    async def _set(self, address: str, value: int) -> None:
        await asyncio.sleep(0)
        self._server.values[address] = value

    async def _read(self, address: str, suffix: str | None) -> int:
        await asyncio.sleep(0)
        return self._server.values.get(address, 0)
