"""What every cache for direct use shares: values in and out of bytes, and ``CachePort`` itself.

A backend implements five operations on addresses; everything else, and what an
invalidation inside a transaction means, is here.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Generic, TypeVar

from forze.application.contracts.cache import CacheSpec, CacheTags, JsonValue, PointerCache
from forze.application.contracts.deps import Resolver
from forze.application.contracts.transaction import open_transactions
from forze.application.integrations.document.codec import RAW_MARK, unseal
from forze.application.integrations.document.outage import Journals
from forze.application.integrations.document.protocol import SCHEMA_CHARS
from forze.application.integrations.document.stats import CacheCounters
from forze.application.integrations.document.writes import Invalidation, Outlet
from forze.application.integrations.keys import encode_part
from forze.errors import BackendCorrupt, ValidationError

A = TypeVar("A", bound=Hashable)

DIRECT = "-" * SCHEMA_CHARS
"""Stands for a schema where a value was stored directly: no document reader takes it."""


def encode_value(key: str, value: Any, max_bytes: int) -> bytes:
    """``value`` as stored; raises :class:`ValidationError` for what would not come back equal."""
    if isinstance(value, bytes):
        body = RAW_MARK + value
    else:
        try:
            text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
            body = text.encode()
            same = json.loads(text) == value
        except (TypeError, ValueError, RecursionError) as error:
            raise ValidationError(
                f"cache key {key!r}: {type(value).__name__} is not JSON ({error}); store "
                'None, bool, int, float, str, list, dict with text keys (model_dump(mode="json") '
                "of a model), or bytes",
                field="value",
            ) from error
        if not same:
            raise ValidationError(
                f"cache key {key!r}: the value would come back as another one (tuples, keys "
                "that are not text); store lists and dicts with text keys",
                field="value",
            )
    if len(body) > max_bytes:
        raise ValidationError(
            f"cache key {key!r}: the value has {len(body)} bytes, above max_value_bytes="
            f"{max_bytes}; store less, or raise the limit in the cache's config",
            field="value",
        )
    return body


def decode_value(key: str, body: bytes) -> Any:
    """The value stored as ``body``, out of its envelope if it is in one."""
    if body.startswith(RAW_MARK):
        return body[len(RAW_MARK) :]
    try:
        return json.loads(unseal(body)[0])
    except ValueError as error:
        raise BackendCorrupt(
            f"cache key {key!r} holds {len(body)} bytes that are not JSON; something else "
            "writes to this namespace",
            backend="cache",
        ) from error


class DirectCache(ABC, Generic[A]):
    """Implements ``CachePort`` over a backend's operations on addresses of type ``A``."""

    def __init__(self, spec: CacheSpec, resolver: Resolver, *, max_value_bytes: int) -> None:
        self._spec = spec
        self._resolver = resolver
        self._max_value_bytes = max_value_bytes
        self._direct: Outlet | None = None
        self._tags: CacheTags | None = None

    # -- what a backend implements -------------------------------------------

    @abstractmethod
    def pointers(self, fingerprint: str) -> PointerCache:
        """The pointer operations over the same keys, for readers of one model schema."""

    @abstractmethod
    def _address(self, key: str) -> A:
        """Where ``key`` is kept, under the bound tenant."""

    @abstractmethod
    def _pointer(self, address: A) -> str:
        """The address as the pointer operations have it."""

    @abstractmethod
    async def _load(self, addresses: Sequence[A]) -> list[bytes | None]:
        """What is stored at each address: a versioned body before a plain one."""

    @abstractmethod
    async def _store(self, bodies: Mapping[A, bytes], life_ms: int) -> None:
        """Store plain bodies; what is versioned beside them is invalidated."""

    @abstractmethod
    async def _put(self, entries: Sequence[tuple[A, str, bytes]], life_ms: int) -> list[bool]:
        """Store ``(address, version, body)`` each as ``protocol.put`` allows; which were."""

    @abstractmethod
    async def _remove(self, addresses: Sequence[A], *, hard: bool = True) -> list[bool]:
        """Remove what ``_load`` would find; where there was something."""

    # -- CachePort -----------------------------------------------------------

    async def get(self, key: str) -> JsonValue | bytes | None:
        (body,) = await self._load((self._address(key),))
        return None if body is None else decode_value(key, body)

    async def get_many(self, keys: Sequence[str]) -> tuple[dict[str, JsonValue | bytes], list[str]]:
        addresses = {key: self._address(key) for key in keys}
        bodies = await self._load(list(addresses.values()))
        hits = {
            key: decode_value(key, body)
            for key, body in zip(addresses, bodies, strict=True)
            if body is not None
        }
        return hits, [key for key in addresses if key not in hits]

    async def exists(self, key: str) -> bool:
        (body,) = await self._load((self._address(key),))
        return body is not None

    async def set(
        self, key: str, value: JsonValue | bytes, *, ttl: timedelta | None = None
    ) -> None:
        await self.set_many({key: value}, ttl=ttl)

    async def set_many(
        self, values: Mapping[str, JsonValue | bytes], *, ttl: timedelta | None = None
    ) -> None:
        bodies = {self._address(key): self._body(key, value) for key, value in values.items()}
        await self._store(bodies, self._life_ms(ttl))

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
        entries = [
            (self._address(key), encode_part(version, "version"), self._body(key, value))
            for (key, version), value in values.items()
        ]
        return dict(zip(values, await self._put(entries, self._life_ms(ttl)), strict=True))

    async def invalidate(self, key: str) -> None:
        await self.invalidate_many((key,))

    async def invalidate_many(self, keys: Iterable[str]) -> None:
        addresses = [self._address(key) for key in keys]
        transactions = open_transactions()
        if not transactions:
            await self._remove(addresses)
            return
        for transaction in transactions:  # whichever of them changed what the key stands for
            write = Invalidation.of(transaction, self._resolver)
            write.announce(self._outlet(), [self._pointer(each) for each in addresses])
            write.then(lambda: self._remove(addresses))

    async def invalidate_tags(self, *tags: str) -> None:
        await self.tags().invalidate(tags)

    def tags(self) -> CacheTags:
        if self._tags is None:
            # Here, so that only those who cache functions load what it takes.
            from forze.application.integrations.cached.tags import SCHEMA, Tags

            self._tags = Tags(self.pointers(SCHEMA), self._resolver)
        return self._tags

    async def delete(self, key: str, *, hard: bool = True) -> bool:
        if open_transactions():
            there = await self.exists(key)
            await self.invalidate(key)
            return there
        return (await self._remove((self._address(key),), hard=hard))[0]

    def _outlet(self) -> Outlet:
        """Where a transaction announces the keys it invalidates directly."""
        if self._direct is None:
            pointers = self.pointers(DIRECT)
            self._direct = Outlet(pointers, Journals(pointers, self._resolver), CacheCounters())
        return self._direct

    def _body(self, key: str, value: JsonValue | bytes) -> bytes:
        return encode_value(key, value, self._max_value_bytes)

    def _life_ms(self, ttl: timedelta | None) -> int:
        life = self._spec.ttl if ttl is None else ttl
        if life < timedelta(milliseconds=1):
            raise ValidationError(
                f"cache {self._spec.name!r}: ttl must be at least a millisecond, not {life}",
                field="ttl",
            )
        return life // timedelta(milliseconds=1)
