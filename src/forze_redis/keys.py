"""How names become keys: percent-encoded parts, so that no two spell one Redis key.

::

    {namespace}/cache/pointer/[{tenant}/]{key}
    {namespace}/cache/body/[{tenant}/]{key}/{version}
    {namespace}/cache/kv/[{tenant}/]{key}

An encoded part holds no ``/``, so the parts can be told apart again; ``:`` stays as it is.
The tenant stands behind the fixed prefix, so that one prefix covers every tenant.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import quote

from forze.application.contracts.tenancy import require_tenant
from forze.errors import ConfigurationError, ValidationError

POINTER = "/cache/pointer/"
PLAIN = "/cache/kv/"
BODY = "/cache/body/"

_plain = re.compile(r"[A-Za-z0-9_.~:-]+").fullmatch


def encode(part: str, what: str = "key") -> str:
    """``part`` with everything but letters, digits and ``_.~:-`` percent-encoded (UTF-8)."""
    if _plain(part):
        return part
    if not isinstance(part, str):
        raise ValidationError(f"a {what} must be text, not {type(part).__name__}", field=what)
    if not part:
        raise ValidationError(f"the {what} is empty; give one that names something", field=what)
    return quote(part, safe=":", errors="surrogatepass")


class CacheKeys:
    """The keys of one cache. ``namespace`` may depend on the tenant (a dynamic namespace)."""

    __slots__ = ("_fixed", "_namespace", "_resource", "_tenant_aware", "tenant_aware")

    def __init__(
        self,
        namespace: str | Callable[[str], str],
        *,
        tenant_aware: bool,
        resource: str,
    ) -> None:
        self._namespace = namespace
        self._tenant_aware = tenant_aware
        self._resource = resource
        self._fixed = None if callable(namespace) else encode(namespace, "namespace") + POINTER
        self.tenant_aware = tenant_aware or callable(namespace)

    def pointer(self, key: str) -> str:
        """The pointer key of ``key`` under the bound tenant."""
        plain = key if _plain(key) else encode(key)
        if not self.tenant_aware:
            return f"{self._fixed}{plain}"
        tenant = require_tenant(self._resource)
        prefix = self._fixed or self._dynamic(tenant)
        return (
            f"{prefix}{encode(tenant, 'tenant')}/{plain}" if self._tenant_aware else prefix + plain
        )

    def prefix(self) -> str:
        """What every pointer of the namespace begins with; dynamic: of the bound tenant's."""
        return self._fixed or self._dynamic(require_tenant(self._resource))

    def _dynamic(self, tenant: str) -> str:
        assert callable(self._namespace)
        namespace: object = self._namespace(tenant)
        if not isinstance(namespace, str) or not namespace:
            raise ConfigurationError(
                f"{self._resource}: the namespace for tenant {tenant!r} is {namespace!r}; "
                "the function must return text that is not empty",
                name="namespace",
            )
        return encode(namespace, "namespace") + POINTER


def plain_of(pointer: str) -> str:
    """The key of the plain value beside a pointer."""
    return pointer.replace(POINTER, PLAIN, 1)
