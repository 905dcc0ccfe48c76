"""The dependencies module of Redis: named resources on one client."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, TypeGuard, TypeVar

from forze.application.contracts.cache import CacheDepKey, CachePort, CacheSpec
from forze.application.contracts.configs import configured
from forze.application.contracts.counter import CounterDepKey
from forze.application.contracts.deps import DepKey, Factory, Named, Resolver
from forze.application.contracts.dlock import (
    DistributedLockDepKey,
    DistributedLockPort,
    DistributedLockSpec,
    ReadWriteLockDepKey,
    ReadWriteLockPort,
    ReadWriteLockSpec,
    SemaphoreDepKey,
    SemaphorePort,
    SemaphoreSpec,
)
from forze.application.contracts.health import HealthCheck, HealthDepKey
from forze.application.contracts.idempotency import (
    IdempotencyDepKey,
)
from forze.application.contracts.search import (
    SearchResultSnapshotDepKey,
)
from forze.application.execution.deps import Deps
from forze.application.integrations.keys import encode_part
from forze.application.integrations.locks.ports import (
    DistributedLocks,
    ReadWriteLocks,
    Semaphores,
)
from forze.errors import ConfigurationError
from forze_redis.cache import RedisCache
from forze_redis.client import RedisClient, RedisClientDepKey
from forze_redis.config import (
    RedisCacheConfig,
    RedisCounterConfig,
    RedisDistributedLockConfig,
    RedisIdempotencyConfig,
    RedisSearchSnapshotConfig,
    ResourceConfig,
)
from forze_redis.counter import RedisCounter
from forze_redis.dlock import RedisLocks
from forze_redis.idempotency import RedisIdempotency
from forze_redis.push_latency import measure_push_latency
from forze_redis.routed import RoutedRedisClient
from forze_redis.routed.cache import RoutedCache
from forze_redis.search_snapshot import RedisSearchSnapshot
from forze_redis.semaphore import RedisSemaphores

K = TypeVar("K", bound=ResourceConfig)
S = TypeVar("S", bound=Named)
P = TypeVar("P")

Configs: TypeAlias = Mapping[str, K | Mapping[str, Any]] | None
"""Configs by the name of their spec; a dict with a config's keys is as good as one."""

OneOrConfigs: TypeAlias = K | Mapping[str, Any] | None
"""One config (or a dict with its keys) for every name, or configs by name."""


class RedisDepsModule:
    """Registers ``client``, and each resource under the name its spec has.

    Configs may be dicts with the keys of their class; what is wrong with them is a
    ``ConfigurationError`` here. ``idempotency`` takes one config, which answers every name, or
    configs by name. A runtime with several servers gives each module but one a
    ``name``: its client is registered under that route of ``RedisClientDepKey``.
    """

    def __init__(
        self,
        *,
        client: RedisClient,
        caches: Configs[RedisCacheConfig] = None,
        counters: Configs[RedisCounterConfig] = None,
        idempotency: OneOrConfigs[RedisIdempotencyConfig] = None,
        search_snapshots: Configs[RedisSearchSnapshotConfig] = None,
        dlocks: Configs[RedisDistributedLockConfig] = None,
        semaphores: Configs[RedisDistributedLockConfig] = None,
        rwlocks: Configs[RedisDistributedLockConfig] = None,
        name: str | None = None,
    ) -> None:
        if not isinstance(client, RedisClient):
            raise ConfigurationError(
                f"RedisDepsModule: client is a RedisClient or RoutedRedisClient, not {client!r}; "
                "the address belongs into redis_lifecycle_step(dsn=...)",
                name="client",
            )
        self._name = name
        self._client = client
        self._routed: dict[DepKey[Any], dict[str, Any]] = {}
        self._plain: dict[DepKey[Any], Any] = {}
        self.configs: list[ResourceConfig] = []
        """Those of all its resources."""
        self._add(CacheDepKey, "caches", RedisCacheConfig, caches, _cache)
        self._add(CounterDepKey, "counters", RedisCounterConfig, counters, RedisCounter)
        self._add_one_or_several(
            IdempotencyDepKey, "idempotency", RedisIdempotencyConfig, idempotency, RedisIdempotency
        )
        self._add(
            SearchResultSnapshotDepKey,
            "search_snapshots",
            RedisSearchSnapshotConfig,
            search_snapshots,
            lambda client, spec, config, _: RedisSearchSnapshot(client, spec, config),
        )
        locks = RedisDistributedLockConfig
        self._add(DistributedLockDepKey, "dlocks", locks, dlocks, _dlock)
        self._add(SemaphoreDepKey, "semaphores", locks, semaphores, _semaphore)
        self._add(ReadWriteLockDepKey, "rwlocks", locks, rwlocks, _rwlock)
        self._health = HealthCheck(
            name="redis" if name is None else f"redis:{name}",
            ask=client.health,
            required=any(map(_fails_when_away, self.configs)),
        )

    def __call__(self) -> Deps:
        """The dependencies."""
        plain, routed = dict(self._plain), dict(self._routed)
        routed[HealthDepKey] = {f"redis-{id(self)}": self._health}
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
        make: Callable[[RedisClient, S, K, Resolver], P],
    ) -> None:
        """Register what ``make`` makes of each config, under its name."""
        if not isinstance(configs, Mapping | None):
            raise ConfigurationError(
                f"RedisDepsModule {argument}: expected {cls.__name__}s by the name of their spec, "
                f'as in {argument}={{"name": {cls.__name__}(...)}}, not {configs!r}',
                name=argument,
            )
        self._routed[key] = {
            name: self._factory(
                make, configured(cls, each, f"RedisDepsModule {argument}[{name!r}]")
            )
            for name, each in (configs or {}).items()
        }

    def _add_one_or_several(
        self,
        key: DepKey[Factory[S, P]],
        argument: str,
        cls: type[K],
        configs: OneOrConfigs[K],
        make: Callable[[RedisClient, S, K, Resolver], P],
    ) -> None:
        """:meth:`_add`, or register what ``make`` makes of one config for every name."""
        if configs is None or _by_name(configs):
            self._add(key, argument, cls, configs, make)
        else:
            config = configured(cls, configs, f"RedisDepsModule {argument}")
            self._plain[key] = self._factory(make, config)

    def _factory(
        self, make: Callable[[RedisClient, S, K, Resolver], P], config: K
    ) -> Factory[S, P]:
        self.configs.append(config)
        return lambda ctx, spec: make(self._client, spec, config, ctx)


def _fails_when_away(config: ResourceConfig) -> bool:
    """Whether calls fail while the server is away. Those of a cache go on without it."""
    return not isinstance(config, RedisCacheConfig) or config.on_outage == "refuse"


def _cache(
    client: RedisClient, spec: CacheSpec, config: RedisCacheConfig, ctx: Resolver
) -> CachePort:
    if isinstance(client, RoutedRedisClient):
        return RoutedCache(client, spec, config, ctx)
    namespace = config.namespace
    if spec.l1 is not None and config.invalidation_push and isinstance(namespace, str):
        measure_push_latency(ctx, client, encode_part(namespace, "namespace"))
    return RedisCache(client, spec, config, ctx)


def _dlock(
    client: RedisClient,
    spec: DistributedLockSpec,
    config: RedisDistributedLockConfig,
    ctx: Resolver,
) -> DistributedLockPort:
    locks = RedisLocks(client, config, resource=f"lock {spec.name!r}", ttl=spec.ttl)
    return DistributedLocks(locks, spec, ctx)


def _semaphore(
    client: RedisClient, spec: SemaphoreSpec, config: RedisDistributedLockConfig, ctx: Resolver
) -> SemaphorePort:
    return Semaphores(RedisSemaphores(client, config, spec), spec, ctx)


def _rwlock(
    client: RedisClient,
    spec: ReadWriteLockSpec,
    config: RedisDistributedLockConfig,
    ctx: Resolver,
) -> ReadWriteLockPort:
    locks = RedisLocks(client, config, resource=f"read/write lock {spec.name!r}", ttl=spec.ttl)
    return ReadWriteLocks(locks, spec, ctx)


def _by_name(
    configs: ResourceConfig | Mapping[str, Any],
) -> TypeGuard[Mapping[str, Any]]:
    """Whether these are configs by name; a dict with a ``namespace`` of its own is a config."""
    return isinstance(configs, Mapping) and (
        "namespace" not in configs or isinstance(configs["namespace"], ResourceConfig | Mapping)
    )
