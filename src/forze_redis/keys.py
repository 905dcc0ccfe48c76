"""How names become keys: percent-encoded parts, so that no two spell one Redis key.

::

    {namespace}/cache/pointer/[{tenant}/]{key}
    {namespace}/cache/body/[{tenant}/]{key}/{version}
    {namespace}/cache/kv/[{tenant}/]{key}

An encoded part holds no ``/``, so the parts can be told apart again; ``:`` stays as it is.
The tenant stands behind the fixed prefix, so that one prefix covers every tenant. On a
cluster the key is the hash tag (``{...}``, which no encoded part can hold), so that what belongs
to one key stands in one slot, and different keys in different ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final
from zlib import crc32

from forze.application.contracts.resilience import PolicyKey
from forze.application.contracts.tenancy import require_tenant
from forze.application.integrations.keys import encode_part, is_plain
from forze.errors import ConfigurationError
from forze_redis.config import ResourceConfig

if TYPE_CHECKING:
    from forze_redis.client import RedisClient

POINTER = "/cache/pointer/"
PLAIN = "/cache/kv/"
BODY = "/cache/body/"

_CHANNELS: Final = 64


class CacheKeys:
    """The keys of one cache. ``namespace`` may depend on the tenant (a dynamic namespace)."""

    __slots__ = ("_client", "_fixed", "_namespace", "_resource", "_tenant_aware", "tenant_aware")

    def __init__(
        self,
        client: RedisClient,
        namespace: str | Callable[[str], str],
        *,
        tenant_aware: bool,
        resource: str,
    ) -> None:
        self._client = client
        self._namespace = namespace
        self._tenant_aware = tenant_aware
        self._resource = resource
        self._fixed = None if callable(namespace) else encode_part(namespace, "namespace") + POINTER
        self.tenant_aware = tenant_aware or callable(namespace)

    def pointer(self, key: str) -> str:
        """The pointer key of ``key`` under the bound tenant."""
        plain = key if key.__class__ is str and is_plain(key) else encode_part(key)
        if self._client.clustered:
            plain = f"{{{plain}}}"
        if not self.tenant_aware:
            return f"{self._fixed}{plain}"
        tenant = require_tenant(self._resource)
        prefix = self._fixed or self._dynamic(tenant)
        if self._tenant_aware:
            prefix += encode_part(tenant, "tenant") + "/"
        return prefix + plain

    def prefix(self) -> str:
        """What every pointer of the namespace begins with; dynamic: of the bound tenant's."""
        return self._fixed or self._dynamic(require_tenant(self._resource))

    def _dynamic(self, tenant: str) -> str:
        assert callable(self._namespace)
        namespace = namespace_of(self._namespace, tenant, self._resource)
        return encode_part(namespace, "namespace") + POINTER


class ResourceKeys:
    """The keys of one coordination resource: ``{namespace}[/{tenant}][/{part}...]``.

    On a cluster the last part is the hash tag (``{...}``), so that what is derived from the
    key by a suffix stands in its slot.
    """

    __slots__ = ("_client", "_config", "_fixed", "_resource")

    def __init__(self, client: RedisClient, config: ResourceConfig, resource: str) -> None:
        self._client = client
        self._config = config
        self._resource = resource
        namespace = config.namespace
        self._fixed = None if callable(namespace) else encode_part(namespace, "namespace")

    def of(self, *encoded: str) -> str:
        """The key of these parts, encoded already, under the bound tenant.

        Raises ``TenantRequired`` where there has to be one and is not.
        """
        if self._fixed is None or self._config.tenant_aware:
            encoded = (*self._of_tenant(), *encoded)
        else:
            encoded = (self._fixed, *encoded)
        if self._client.clustered:
            encoded = (*encoded[:-1], f"{{{encoded[-1]}}}")
        return "/".join(encoded)

    def _of_tenant(self) -> tuple[str, ...]:
        tenant, begin = require_tenant(self._resource), self._fixed
        if begin is None:
            assert callable(self._config.namespace)
            namespace = namespace_of(self._config.namespace, tenant, self._resource)
            begin = encode_part(namespace, "namespace")
        return (begin, encode_part(tenant, "tenant")) if self._config.tenant_aware else (begin,)


class PolicyKeys:
    """The keys of policies: ``{namespace}/{policy}[/{route}]``. No two spell one.

    On a cluster the route is the hash tag, so that limits of one route stand together; what is
    told of its keys is told on ``_CHANNELS`` channels, whose number is the tag then.
    """

    __slots__ = ("_client", "_keys", "config")

    def __init__(self, client: RedisClient, config: ResourceConfig, resource: str) -> None:
        self._client = client
        self.config = config
        self._keys = ResourceKeys(client, config, resource)

    @property
    def clustered(self) -> bool:
        """Whether keys of one call have to stand in one slot."""
        return self._client.clustered

    def of(self, key: PolicyKey) -> str:
        """The key of a policy and route."""
        return self._keys.of(*_parts(key))

    def told(self, key: PolicyKey) -> tuple[str, str]:
        """The key of a policy and route, and the channel on which its changes are told."""
        parts = _parts(key)
        if not self.clustered:
            return self._keys.of(*parts), self._keys.of("changed")
        number = str(crc32("/".join(parts).encode()) % _CHANNELS)
        return self._keys.of(*parts, number), self._keys.of("changed", number)


def _parts(key: PolicyKey) -> tuple[str, ...]:
    """Policy and route, encoded; ``=``, which no encoded part can be, is the empty route."""
    policy, route = key
    part = encode_part(policy, "policy")
    return (part,) if route is None else (part, encode_part(route, "route") if route else "=")


def namespace_of(make: Callable[[str], str], tenant: str, resource: str) -> str:
    """The dynamic namespace of a tenant; raises ``ConfigurationError`` where it is none."""
    namespace: object = make(tenant)
    if not isinstance(namespace, str) or not namespace:
        raise ConfigurationError(
            f"{resource}: the namespace for tenant {tenant!r} is {namespace!r}; "
            "the function must return text that is not empty",
            name="namespace",
        )
    return namespace


def plain_of(pointer: str) -> str:
    """The key of the plain value beside a pointer."""
    return pointer.replace(POINTER, PLAIN, 1)
