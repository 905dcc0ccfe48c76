"""Resource configurations: which keys a named resource uses, and how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from forze.application.contracts.cache import OnOutage
from forze.errors import ConfigurationError

MIB = 1024 * 1024

Namespace: TypeAlias = str | Callable[[str], str]
"""Prefixes the keys of a resource; a callable makes it from the bound tenant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceConfig:
    """What every resource has: a namespace of its own, and whether each tenant's is apart."""

    namespace: Namespace
    tenant_aware: bool = False

    def __post_init__(self) -> None:
        namespace: object = self.namespace
        if not callable(namespace) and (not isinstance(namespace, str) or not namespace):
            raise ConfigurationError(
                f"{type(self).__name__}: namespace must be text that is not empty (or a function "
                f"of the tenant), not {namespace!r}",
                name="namespace",
            )
        self._check_flag("tenant_aware")

    def _check_flag(self, name: str) -> None:
        if not isinstance(getattr(self, name), bool):
            raise ConfigurationError(
                f"{type(self).__name__}: {name} is True or False, not {getattr(self, name)!r}",
                name=name,
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisCacheConfig(ResourceConfig):
    """One cache. ``namespace`` prefixes its keys; a callable makes it from the bound tenant.

    ``on_outage``: ``"proceed"`` lets writes go on when the cache cannot be told of them
    (other processes may then serve the old value up to its TTL), ``"refuse"`` fails them
    before they commit. Values above ``max_value_bytes`` are not stored. With
    ``invalidation_push`` the server tells every process what changed, so that entries of an
    in-process L1 outlive a write by the time of a push; it has no effect without an L1, nor
    where ``namespace`` is a callable.
    """

    invalidation_push: bool = False
    on_outage: OnOutage = "proceed"
    max_value_bytes: int = MIB

    def __post_init__(self) -> None:
        ResourceConfig.__post_init__(self)
        self._check_flag("invalidation_push")
        if self.on_outage not in ("proceed", "refuse"):
            raise ConfigurationError(
                f'RedisCacheConfig: on_outage is "proceed" or "refuse", not {self.on_outage!r}',
                name="on_outage",
                known=("proceed", "refuse"),
            )
        if self.max_value_bytes < 1:
            raise ConfigurationError(
                f"RedisCacheConfig: max_value_bytes must be at least 1, not {self.max_value_bytes}",
                name="max_value_bytes",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisCounterConfig(ResourceConfig):
    """One set of counters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisIdempotencyConfig(ResourceConfig):
    """One set of idempotency records."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisSearchSnapshotConfig(ResourceConfig):
    """One set of search-result snapshots."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisDistributedLockConfig(ResourceConfig):
    """One set of locks, of semaphores or of read/write locks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisRateLimitConfig(ResourceConfig):
    """The limits of a rate-limit store."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisCircuitBreakerConfig(ResourceConfig):
    """The circuits of a breaker store."""
