"""The cache for direct use, in process. Values are kept encoded, so what is stored is a copy."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta

from forze.application.contracts.cache import CacheSpec, JsonValue
from forze.application.contracts.deps import Resolver
from forze.application.contracts.transaction import open_transactions
from forze.application.integrations.document import protocol
from forze.application.integrations.document.outage import Journal
from forze.application.integrations.document.protocol import SCHEMA_CHARS, Intent, Value
from forze.application.integrations.document.stats import CacheCounters
from forze.application.integrations.document.writes import Invalidation, Outlet
from forze.application.integrations.values import decode_value, encode_value
from forze.errors import ValidationError
from forze_memory.config import MemoryCacheConfig
from forze_memory.pointers import (
    GENERATION,
    Addresses,
    MemoryCacheServer,
    MemoryPointers,
    encode,
)

DIRECT = "-" * SCHEMA_CHARS
"""Stands for a schema where a value was stored directly: no document reader takes it."""


class MemoryCache:
    """A cache for direct use. Implements ``CachePort``."""

    def __init__(
        self, server: MemoryCacheServer, spec: CacheSpec, config: MemoryCacheConfig, ctx: Resolver
    ) -> None:
        self._server = server
        self._config = config
        self._resolver = ctx
        self._ttl = spec.ttl
        self._name = spec.name
        self._direct: Outlet | None = None
        self._addresses = Addresses(
            config.namespace or spec.name,
            tenant_aware=config.tenant_aware,
            resource=f"cache {spec.name!r}",
        )

    def pointers(self, fingerprint: str) -> MemoryPointers:
        return MemoryPointers(self._server, self._addresses, self._config, fingerprint)

    async def get(self, key: str) -> JsonValue | bytes | None:
        hits, _ = await self.get_many((key,))
        return hits.get(key)

    async def get_many(self, keys: Sequence[str]) -> tuple[dict[str, JsonValue | bytes], list[str]]:
        addresses = {key: self._addresses.of(key) for key in keys}
        await asyncio.sleep(0)
        bodies = {key: self._body(address) for key, address in addresses.items()}
        hits = {key: decode_value(key, body) for key, body in bodies.items() if body is not None}
        return hits, [key for key in bodies if key not in hits]

    async def exists(self, key: str) -> bool:
        address = self._addresses.of(key)
        await asyncio.sleep(0)
        return self._body(address) is not None

    def _body(self, address: str) -> bytes | None:
        server, now = self._server, self._server.now()
        body = server.body(address, server.pointer(address, now), now)
        return server.plain.get(address, now) if body is None else body

    async def set(
        self, key: str, value: JsonValue | bytes, *, ttl: timedelta | None = None
    ) -> None:
        await self.set_many({key: value}, ttl=ttl)

    async def set_many(
        self, values: Mapping[str, JsonValue | bytes], *, ttl: timedelta | None = None
    ) -> None:
        bodies = {self._addresses.of(key): self._encoded(key, each) for key, each in values.items()}
        life = self._life_ms(ttl)
        await asyncio.sleep(0)
        now = self._server.now()
        for address, body in bodies.items():
            self._drop_pointer(address, now)
            self._server.plain.set(address, body, now + life, now)

    async def set_versioned(
        self, key: str, version: str, value: JsonValue | bytes, *, ttl: timedelta | None = None
    ) -> bool:
        return (await self.set_many_versioned({(key, version): value}, ttl=ttl))[key, version]

    async def set_many_versioned(
        self,
        values: Mapping[tuple[str, str], JsonValue | bytes],
        *,
        ttl: timedelta | None = None,
    ) -> dict[tuple[str, str], bool]:
        life = self._life_ms(ttl)
        entries = [
            (
                each,
                self._addresses.of(each[0]),
                encode(each[1], "version"),
                self._encoded(each[0], value),
            )
            for each, value in values.items()
        ]
        await asyncio.sleep(0)
        server, now = self._server, self._server.now()
        stored: dict[tuple[str, str], bool] = {}
        for each, address, version, body in entries:
            before = server.pointer(address, now)
            pointer, stored[each] = protocol.put(before, GENERATION + DIRECT, version, now)
            if stored[each]:
                assert isinstance(pointer, Value)
                server.put(address, pointer, body, life, now)
        return stored

    async def invalidate(self, key: str) -> None:
        await self.invalidate_many((key,))

    async def invalidate_many(self, keys: Iterable[str]) -> None:
        addresses = [self._addresses.of(key) for key in keys]
        transactions = open_transactions()
        if not transactions:
            await self._remove(addresses)
            return
        write = Invalidation.of(transactions[-1], self._resolver)
        write.announce(self._outlet(), addresses)
        write.then(lambda: self._remove(addresses))

    async def delete(self, key: str, *, hard: bool = True) -> bool:
        return (await self._remove((self._addresses.of(key),), hard=hard))[0]

    async def _remove(self, addresses: Sequence[str], *, hard: bool = True) -> list[bool]:
        await asyncio.sleep(0)
        now = self._server.now()
        removed: list[bool] = []
        for address in addresses:
            versioned = self._drop_pointer(address, now, keep_body=not hard)
            removed.append(self._server.plain.remove(address, now) or versioned)
        return removed

    def _drop_pointer(self, address: str, now: int, *, keep_body: bool = False) -> bool:
        """Invalidate unless a write is announced (it will); whether there was a value."""
        pointer = self._server.pointer(address, now)
        if not isinstance(pointer, Intent):
            self._server.replace(address, None, now, keep_body=keep_body)
        return isinstance(pointer, Value)

    def _outlet(self) -> Outlet:
        """Where a transaction announces the keys it invalidates directly."""
        if self._direct is None:
            pointers = self.pointers(DIRECT)
            self._direct = Outlet(pointers, Journal(pointers, self._resolver), CacheCounters())
        return self._direct

    def _encoded(self, key: str, value: JsonValue | bytes) -> bytes:
        return encode_value(key, value, self._config.max_value_bytes)

    def _life_ms(self, ttl: timedelta | None) -> int:
        life = self._ttl if ttl is None else ttl
        if life < timedelta(milliseconds=1):
            raise ValidationError(
                f"cache {self._name!r}: ttl must be at least a millisecond, not {life}", field="ttl"
            )
        return life // timedelta(milliseconds=1)
