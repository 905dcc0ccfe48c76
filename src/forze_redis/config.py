"""Resource configurations: which keys a named resource uses, and how."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from forze.application.contracts.cache import OnOutage
from forze.errors import ConfigurationError

K = TypeVar("K")

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisCacheConfig:
    """One cache. ``namespace`` prefixes its keys; a callable makes it from the bound tenant.

    ``on_outage``: ``"proceed"`` lets writes go on when the cache cannot be told of them
    (other processes may then serve the old value up to its TTL), ``"refuse"`` fails them
    before they commit. Values above ``max_value_bytes`` are not stored.
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


def configured(cls: type[K], value: K | Mapping[str, Any], where: str) -> K:
    """``value`` as a ``cls``; a dict with an unknown or missing key is refused by name."""
    if isinstance(value, cls):
        return value
    if not isinstance(value, Mapping):
        raise ConfigurationError(
            f"{where}: expected {cls.__name__} or a dict, not {type(value).__name__}", name=where
        )
    known = [field.name for field in fields(cls)]  # type: ignore[arg-type]
    unknown = sorted(set(value) - set(known))
    if unknown:
        raise ConfigurationError(
            f"{where}: unknown key {unknown[0]!r}; {cls.__name__} has {', '.join(known)}",
            name=str(unknown[0]),
            known=known,
        )
    try:
        return cls(**value)
    except TypeError as error:
        raise ConfigurationError(f"{where}: {cls.__name__}: {error}", name=where) from None
