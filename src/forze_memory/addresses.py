"""Where a coordination resource keeps what: the keys of the Redis adapters, spelled the same."""

from __future__ import annotations

from forze.application.contracts.tenancy import require_tenant
from forze.application.integrations.keys import encode_part
from forze_memory.config import MemoryResourceConfig


class ResourceAddresses:
    """``{namespace}[/{tenant}][/{part}...]``; the namespace is the spec's name by default."""

    __slots__ = ("_namespace", "_resource", "tenant_aware")

    def __init__(self, config: MemoryResourceConfig, name: str, resource: str) -> None:
        self._namespace = encode_part(config.namespace or name, "namespace")
        self._resource = resource
        self.tenant_aware = config.tenant_aware

    def of(self, *encoded: str) -> str:
        """The address of these parts, encoded already, under the bound tenant."""
        if not self.tenant_aware:
            return "/".join((self._namespace, *encoded))
        tenant = encode_part(require_tenant(self._resource), "tenant")
        return "/".join((self._namespace, tenant, *encoded))
