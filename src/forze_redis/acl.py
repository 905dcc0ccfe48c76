"""Which rights a Redis user needs, as rules of ``ACL SETUSER``: no more, no less.

::

    rules = acl_rules(module, tenant="acme")
    print("ACL SETUSER acme on >secret", *rules)

Keys and channels are those of the resources given: of all tenants, or of one. The commands are
those that the connection sends and those that the resources' scripts contain; a script runs with
its caller's rights. Redis documentation, ACL.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Final
from uuid import UUID

from forze.application.integrations.keys import encode_part
from forze.errors import ConfigurationError
from forze_redis.circuit_breaker import RedisCircuitBreakerStore
from forze_redis.config import (
    RedisCacheConfig,
    RedisCircuitBreakerConfig,
    RedisCounterConfig,
    RedisDistributedLockConfig,
    RedisIdempotencyConfig,
    RedisRateLimitConfig,
    RedisSearchSnapshotConfig,
    ResourceConfig,
)
from forze_redis.keys import namespace_of
from forze_redis.module import RedisDepsModule
from forze_redis.rate_limit import RedisRateLimitStore
from forze_redis.wire.scripts import load_script

CONNECTION: Final = (
    "auth",
    "hello",
    "ping",
    "select",
    "info",
    "client|setname",
    "script|load",
    "evalsha",
    "eval",
)
"""What every connection sends: the shared one, and redis-py's beside it. It says its library's
name as well (``CLIENT SETINFO``), which may be refused; Redis 7.0 knows no such right."""

CLUSTER: Final = ("cluster|slots", "cluster|info", "asking")
"""And where keys are spread over nodes."""

_SCRIPTS: Final[dict[type[ResourceConfig], tuple[str, ...]]] = {
    RedisCacheConfig: (
        *("read", "read_large", "fill", "fill_large", "elect", "lease", "intend", "done"),
        *("get", "put", "set", "remove", "inspect"),
    ),
    RedisCounterConfig: ("count",),
    RedisIdempotencyConfig: (
        *("idempotency_claim", "idempotency_beat"),
        *("idempotency_complete", "idempotency_release"),
    ),
    RedisSearchSnapshotConfig: (
        *("snapshot_stage", "snapshot_publish", "snapshot_page", "snapshot_meta"),
        "snapshot_delete",
    ),
    RedisDistributedLockConfig: (
        *("lock_acquire", "lock_extend", "lock_release", "lock_wait"),
        *("semaphore_acquire", "semaphore_extend", "semaphore_release", "semaphore_wait"),
        "semaphore_held",
    ),
    RedisRateLimitConfig: ("rate_limit",),
    RedisCircuitBreakerConfig: ("circuit_breaker",),
}

_BESIDE: Final[dict[type[ResourceConfig], tuple[str, ...]]] = {
    RedisCounterConfig: ("incrby", "set", "get"),
    RedisIdempotencyConfig: ("ssubscribe", "sunsubscribe"),
    RedisCircuitBreakerConfig: ("ssubscribe", "sunsubscribe"),
    RedisSearchSnapshotConfig: ("set", "unlink", "hdel"),
    RedisDistributedLockConfig: ("get", "pttl", "ssubscribe", "sunsubscribe"),
}
"""What the ports send without a script."""

_WHOLE_CACHE: Final = ("scan", "unlink")
_PUSHES: Final = ("client|tracking", "set")

_CALLED = re.compile(r"redis\.p?call\('(\w+)'")
_CHOSEN = re.compile(r"'(UNLINK|EXISTS)'")
_GLOB = re.compile(r"[][*?\\]")


def acl_rules(
    *resources: RedisDepsModule | ResourceConfig | RedisRateLimitStore | RedisCircuitBreakerStore,
    tenant: UUID | str | None = None,
    clustered: bool = False,
) -> tuple[str, ...]:
    """The rules of a user for these resources, to follow ``ACL SETUSER name``; they begin by
    taking every other right.

    Without ``tenant`` it is a user for the whole fleet. With it, one confined to what is that
    tenant's: resources all tenants share are left out, and a cache can neither be cleared as a
    whole (other tenants are in it) nor follow pushes (they name everyone's keys).

    Raises ``ConfigurationError`` where no rule can be written: a namespace made from the tenant
    for a user of all, or nothing that is the tenant's own.
    """
    name = None if tenant is None else str(tenant)
    configs = [each for given in resources for each in _configs(given)]
    if name is not None:
        configs = [each for each in configs if each.tenant_aware or callable(each.namespace)]
    if not configs:
        raise ConfigurationError(
            "there is nothing to grant: no resource"
            + ("" if name is None else f" that keeps tenant {name!r} apart (tenant_aware=True)")
        )
    patterns = [p for each in configs for p in _patterns(each, name, clustered)]
    channels = [f"{p}/*" for each in configs if _told(each) for p in _begins(each, name)]
    commands = [*CONNECTION, *(CLUSTER if clustered else ())]
    for each in configs:
        commands += _commands(each, whole=name is None, clustered=clustered)
    return (
        *("resetkeys", "resetchannels", "-@all"),
        *(f"~{pattern}" for pattern in dict.fromkeys(patterns)),
        *(f"&{channel}" for channel in dict.fromkeys(channels)),
        *(f"+{command}" for command in dict.fromkeys(commands)),
    )


def _configs(given: object) -> Iterable[ResourceConfig]:
    if isinstance(given, ResourceConfig):
        return (given,)
    if isinstance(given, RedisRateLimitStore | RedisCircuitBreakerStore):
        return (given.config,)
    if not isinstance(given, RedisDepsModule):
        raise ConfigurationError(
            "acl_rules takes a RedisDepsModule, configs of resources, and stores of limits and "
            f"circuits, not {given!r}"
        )
    return given.configs


def _told(config: ResourceConfig) -> bool:
    """Whether something is published about its keys."""
    return isinstance(
        config, RedisIdempotencyConfig | RedisDistributedLockConfig | RedisCircuitBreakerConfig
    )


def _begins(config: ResourceConfig, tenant: str | None) -> Iterator[str]:
    """What stands before the last part of its keys, as a pattern."""
    namespace = _namespace(config, tenant)
    own = tenant is not None and config.tenant_aware
    yield f"{namespace}/{_literal(tenant or '', 'tenant')}" if own else namespace


def _patterns(config: ResourceConfig, tenant: str | None, clustered: bool) -> Iterator[str]:
    namespace = _namespace(config, tenant)
    if isinstance(config, RedisCacheConfig):
        own = tenant is not None and config.tenant_aware
        behind = f"{_literal(tenant or '', 'tenant')}/*" if own else "*"
        for kind in ("pointer", "body", "kv"):
            yield f"{namespace}/cache/{kind}/{behind}"
        if config.invalidation_push and tenant is None:
            yield f"{namespace}/push-latency/*"
        return
    for begin in _begins(config, tenant):
        yield f"{begin}/*"
        if isinstance(config, RedisCounterConfig):
            head, slash, last = begin.rpartition("/")
            alone = f"{head}{slash}{{{last}}}" if clustered else begin
            yield alone
            yield f"{alone}!*"


def _namespace(config: ResourceConfig, tenant: str | None) -> str:
    namespace = config.namespace
    if callable(namespace):
        if tenant is None:
            raise ConfigurationError(
                f"{type(config).__name__}: its namespace is made from the tenant, so no pattern "
                "covers all; name a tenant, or give it one namespace with tenant_aware=True",
                name="namespace",
            )
        namespace = namespace_of(namespace, tenant, type(config).__name__)
    return _literal(namespace, "namespace")


def _literal(part: str, what: str) -> str:
    """A key part in a pattern. Encoded it holds nothing a pattern takes for its own; were that
    to change, it would be escaped."""
    return _GLOB.sub(r"\\\g<0>", encode_part(part, what))


def _commands(config: ResourceConfig, *, whole: bool, clustered: bool) -> Iterator[str]:
    kind = type(config)
    for script in _SCRIPTS[kind]:
        yield from _called(script)
    yield from _BESIDE.get(kind, ())
    if isinstance(config, RedisCacheConfig) and whole:
        yield from _WHOLE_CACHE
        if clustered:
            yield "cluster|nodes"
        if config.invalidation_push:
            yield from _PUSHES


@cache
def _called(script: str) -> tuple[str, ...]:
    """The commands in a script, in the order it has them."""
    source = load_script(script).source
    found = [*_CALLED.findall(source), *_CHOSEN.findall(source)]
    return tuple(dict.fromkeys(each.lower() for each in found))
