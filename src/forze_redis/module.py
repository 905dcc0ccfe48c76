"""The dependencies module of Redis: named resources on one client."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, TypeVar

from forze.application.contracts.cache import CacheDepKey, CachePort, CacheSpec
from forze.application.contracts.configs import configured
from forze.application.contracts.deps import DepKey, Factory, Named, Resolver
from forze.application.execution.deps import Deps
from forze.application.integrations.keys import encode_part
from forze_redis.cache import RedisCache
from forze_redis.client import RedisClient, RedisClientDepKey
from forze_redis.config import RedisCacheConfig, ResourceConfig
from forze_redis.push_latency import measure_push_latency

K = TypeVar("K", bound=ResourceConfig)
S = TypeVar("S", bound=Named)
P = TypeVar("P")

Configs: TypeAlias = Mapping[str, K | Mapping[str, Any]] | None
"""Configs by the name of their spec; a dict with a config's keys is as good as one."""


class RedisDepsModule:
    """Registers ``client``, and each resource under the name its spec has.

    Configs may be dicts with the keys of their class; what is wrong with them is a
    ``ConfigurationError`` here. A runtime with several servers gives each module but one a
    ``name``: its client is registered under that route of ``RedisClientDepKey``.
    """

    def __init__(
        self,
        *,
        client: RedisClient,
        caches: Configs[RedisCacheConfig] = None,
        name: str | None = None,
    ) -> None:
        self._name = name
        self._client = client
        self._routed: dict[DepKey[Any], dict[str, Any]] = {}
        self._plain: dict[DepKey[Any], Any] = {}
        self._add(CacheDepKey, "caches", RedisCacheConfig, caches, _cache)

    def __call__(self) -> Deps:
        """The dependencies."""
        plain, routed = dict(self._plain), dict(self._routed)
        if self._name is None:
            plain[RedisClientDepKey] = self._client
        else:
            routed[RedisClientDepKey] = {self._name: self._client}
        return Deps(plain=plain, routed=routed)

    def _add(
        self,
        key: DepKey[Factory[S, P]],
        argument: str,
        cls: type[K],
        configs: Configs[K],
        make: Callable[[RedisClient, K, S, Resolver], P],
    ) -> None:
        """Register what ``make`` makes of each config, under its name."""
        self._routed[key] = {
            name: self._factory(
                make, configured(cls, each, f"RedisDepsModule {argument}[{name!r}]")
            )
            for name, each in (configs or {}).items()
        }

    def _factory(
        self, make: Callable[[RedisClient, K, S, Resolver], P], config: K
    ) -> Factory[S, P]:
        return lambda ctx, spec: make(self._client, config, spec, ctx)


def _cache(
    client: RedisClient, config: RedisCacheConfig, spec: CacheSpec, ctx: Resolver
) -> CachePort:
    namespace = config.namespace
    if spec.l1 is not None and config.invalidation_push and isinstance(namespace, str):
        measure_push_latency(ctx, client, encode_part(namespace, "namespace"))
    return RedisCache(client, spec, config, ctx)
