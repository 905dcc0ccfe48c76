"""The cache for direct use, in process. Values are kept encoded, so what is stored is a copy."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from forze.application.contracts.cache import CacheSpec
from forze.application.contracts.deps import Resolver
from forze.application.integrations.direct_cache import DIRECT, DirectCache
from forze.application.integrations.document import protocol
from forze.application.integrations.document.protocol import Intent, Value
from forze_memory.config import MemoryCacheConfig
from forze_memory.pointers import GENERATION, Addresses, MemoryCacheServer, MemoryPointers


class MemoryCache(DirectCache[str]):
    """A cache for direct use. Implements ``CachePort``."""

    def __init__(
        self, server: MemoryCacheServer, spec: CacheSpec, config: MemoryCacheConfig, ctx: Resolver
    ) -> None:
        super().__init__(spec, ctx, max_value_bytes=config.max_value_bytes)
        self._server = server
        self._config = config
        self._addresses = Addresses(
            config.namespace or spec.name,
            tenant_aware=config.tenant_aware,
            resource=f"cache {spec.name!r}",
        )

    def pointers(self, fingerprint: str) -> MemoryPointers:
        return MemoryPointers(self._server, self._addresses, self._config, self._spec, fingerprint)

    def _address(self, key: str) -> str:
        return self._addresses.of(key)

    def _pointer(self, address: str) -> str:
        return address

    async def _load(self, addresses: Sequence[str]) -> list[bytes | None]:
        await asyncio.sleep(0)
        server, now = self._server, self._server.now()
        found: list[bytes | None] = []
        for address in addresses:
            body = server.body(address, server.pointer(address, now), now)
            found.append(server.plain.get(address, now) if body is None else body)
        return found

    async def _store(self, bodies: Mapping[str, bytes], life_ms: int) -> None:
        await asyncio.sleep(0)
        now = self._server.now()
        for address, body in bodies.items():
            self._drop_pointer(address, now)
            self._server.plain.set(address, body, now + life_ms, now)

    async def _put(self, entries: Sequence[tuple[str, str, bytes]], life_ms: int) -> list[bool]:
        await asyncio.sleep(0)
        server, now = self._server, self._server.now()
        stored: list[bool] = []
        for address, version, body in entries:
            before = server.pointer(address, now)
            pointer, accepted = protocol.put(before, GENERATION + DIRECT, version, now)
            stored.append(accepted)
            if accepted:
                assert isinstance(pointer, Value)
                server.put(address, pointer, body, now, life_ms=life_ms)
                server.changed(address)
        return stored

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
