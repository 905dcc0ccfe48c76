"""The dependencies module of Redis: named resources on one client."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from forze.application.contracts.cache import CacheDepKey, CacheFactory, CachePort, CacheSpec
from forze.application.contracts.configs import configured
from forze.application.contracts.deps import Resolver
from forze.application.execution.deps import Deps
from forze.application.integrations.keys import encode_part
from forze_redis.cache import RedisCache
from forze_redis.client import RedisClient, RedisClientDepKey
from forze_redis.config import RedisCacheConfig
from forze_redis.push_latency import measure_push_latency


class RedisDepsModule:
    """Registers ``client``, and each cache under the name its ``CacheSpec`` has.

    Configs may be dicts with the keys of :class:`RedisCacheConfig`; what is wrong with
    them is a ``ConfigurationError`` here. A runtime with several servers gives each module
    but one a ``name``: its client is registered under that route of ``RedisClientDepKey``.
    """

    def __init__(
        self,
        *,
        client: RedisClient,
        caches: Mapping[str, RedisCacheConfig | Mapping[str, Any]] | None = None,
        name: str | None = None,
    ) -> None:
        self._name = name
        self._client = client
        self._caches = {
            name: configured(RedisCacheConfig, config, f"RedisDepsModule caches[{name!r}]")
            for name, config in (caches or {}).items()
        }

    def __call__(self) -> Deps:
        """The dependencies."""
        caches = {name: _cache_factory(self._client, each) for name, each in self._caches.items()}
        if self._name is None:
            return Deps(plain={RedisClientDepKey: self._client}, routed={CacheDepKey: caches})
        clients = {self._name: self._client}
        return Deps(routed={CacheDepKey: caches, RedisClientDepKey: clients})


def _cache_factory(client: RedisClient, config: RedisCacheConfig) -> CacheFactory:
    def cache(ctx: Resolver, spec: CacheSpec) -> CachePort:
        namespace = config.namespace
        if spec.l1 is not None and config.invalidation_push and isinstance(namespace, str):
            measure_push_latency(ctx, client, encode_part(namespace, "namespace"))
        return RedisCache(client, spec, config, ctx)

    return cache
