"""Resource configurations: which keys a named resource uses, and how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from forze.application.contracts.cache import OnOutage
from forze.errors import ConfigurationError

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisCacheConfig:
    """One cache. ``namespace`` prefixes its keys; a callable makes it from the bound tenant.

    ``on_outage``: ``"proceed"`` lets writes go on when the cache cannot be told of them
    (other processes may then serve the old value up to its TTL), ``"refuse"`` fails them
    before they commit. Values above ``max_value_bytes`` are not stored. With
    ``invalidation_push`` the server tells every process what changed, so that entries of an
    in-process L1 outlive a write by the time of a push; it has no effect without an L1, nor
    where ``namespace`` is a callable.
    """

    namespace: str | Callable[[str], str]
    tenant_aware: bool = False
    invalidation_push: bool = False
    on_outage: OnOutage = "proceed"
    max_value_bytes: int = MIB

    def __post_init__(self) -> None:
        namespace: object = self.namespace
        if not callable(namespace) and (not isinstance(namespace, str) or not namespace):
            raise ConfigurationError(
                f"RedisCacheConfig: namespace must be text that is not empty (or a function of "
                f"the tenant), not {self.namespace!r}",
                name="namespace",
            )
        for name in ("tenant_aware", "invalidation_push"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigurationError(
                    f"RedisCacheConfig: {name} is True or False, not {getattr(self, name)!r}",
                    name=name,
                )
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
