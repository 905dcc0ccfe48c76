"""The cache over a routed client: for each client a :class:`~forze_redis.cache.RedisCache`.

Direct use goes where the current route leads. How documents are cached is in
``pointers``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import TypeAlias, TypeVar

from forze.application.contracts.cache import CacheSpec
from forze.application.contracts.deps import Resolver
from forze.application.integrations.direct_cache import DIRECT, DirectCache
from forze.errors import ConfigurationError
from forze_redis.cache import Pair, RedisCache
from forze_redis.client import RedisClient
from forze_redis.config import RedisCacheConfig
from forze_redis.keys import CacheKeys, plain_of
from forze_redis.routed.client import RoutedRedisClient
from forze_redis.routed.pointers import RoutedPointers, at

T = TypeVar("T")

Place: TypeAlias = tuple[str, Pair]
"""Where an entry is kept: a route, and its pair of keys there."""


class RoutedCache(DirectCache[Place]):
    """A cache for direct use, on the current route's server. Implements ``CachePort``."""

    def __init__(
        self,
        client: RoutedRedisClient,
        spec: CacheSpec,
        config: RedisCacheConfig,
        resolver: Resolver,
    ) -> None:
        super().__init__(spec, resolver, max_value_bytes=config.max_value_bytes)
        self._client = client
        self._config = config
        self._keys = CacheKeys(
            client,
            config.namespace,
            tenant_aware=config.tenant_aware,
            resource=f"cache {spec.name!r}",
        )

    def pointers(self, fingerprint: str) -> RoutedPointers:
        """Raises ``ConfigurationError`` for documents of all tenants: a write for one of them
        could not reach the others' servers."""
        if fingerprint != DIRECT and not self._keys.tenant_aware:
            raise ConfigurationError(
                f"cache {self._spec.name!r}: documents behind a RoutedRedisClient belong to "
                "tenants; set tenant_aware=True on their cache and on their store",
                name=self._spec.name,
            )
        return RoutedPointers(self._client, self._keys, self._config, self._spec, fingerprint)

    def _address(self, key: str) -> Place:
        pointer = self._keys.pointer(key)
        return self._client.current_route(), (pointer, plain_of(pointer))

    def _pointer(self, address: Place) -> str:
        return at(address[0], address[1][0])

    async def _load(self, addresses: Sequence[Place]) -> list[bytes | None]:
        return await self._each(addresses, lambda cache, _, pairs: cache._load(pairs))

    async def _store(self, bodies: Mapping[Place, bytes], life_ms: int) -> None:
        async def store(cache: RedisCache, route: str, pairs: Sequence[Pair]) -> list[None]:
            await cache._store({pair: bodies[route, pair] for pair in pairs}, life_ms)
            return [None] * len(pairs)

        await self._each(list(bodies), store)

    async def _put(self, entries: Sequence[tuple[Place, str, bytes]], life_ms: int) -> list[bool]:
        async def put(cache: RedisCache, route: str, pairs: Sequence[Pair]) -> list[bool]:
            its = [(pair, version, body) for (at, pair), version, body in entries if at == route]
            return await cache._put(its, life_ms)

        return await self._each([place for place, _, _ in entries], put)

    async def _remove(self, addresses: Sequence[Place], *, hard: bool = True) -> list[bool]:
        return await self._each(addresses, lambda cache, _, pairs: cache._remove(pairs, hard=hard))

    async def _each(
        self,
        places: Sequence[Place],
        ask: Callable[[RedisCache, str, Sequence[Pair]], Awaitable[Sequence[T]]],
    ) -> list[T]:
        """The answers for all, in order; one route after the other (mostly there is one)."""
        answers: dict[str, Iterator[T]] = {}
        for route in dict.fromkeys(route for route, _ in places):
            pairs = [pair for at, pair in places if at == route]
            async with self._client.hold_cached(route) as seat:
                answers[route] = iter(await ask(seat.port(self, self._made), route, pairs))
        return [next(answers[route]) for route, _ in places]

    def _made(self, client: RedisClient) -> RedisCache:
        return RedisCache(client, self._spec, self._config, self._resolver)
