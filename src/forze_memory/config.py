"""Resource configurations of the memory backend."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from forze.application.contracts.configs import configured
from forze.errors import ConfigurationError

K = TypeVar("K")

Names: TypeAlias = Mapping[str, K | Mapping[str, Any]] | Iterable[str] | None
"""Configs by name, or names for the default config, or None for the default under any name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryCacheConfig:
    """One cache. ``namespace`` None: the name of the spec."""

    namespace: str | None = None
    tenant_aware: bool = False
    max_value_bytes: int = 1024 * 1024

    def __post_init__(self) -> None:
        if self.namespace == "":
            raise ConfigurationError(
                "MemoryCacheConfig: namespace is empty; leave it out for the spec's name",
                name="namespace",
            )
        if self.max_value_bytes < 1:
            raise ConfigurationError(
                f"MemoryCacheConfig: max_value_bytes must be at least 1, "
                f"not {self.max_value_bytes}",
                name="max_value_bytes",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryResourceConfig:
    """Counters, idempotency records, locks or snapshots. ``namespace`` None: the spec's name."""

    namespace: str | None = None
    tenant_aware: bool = False

    def __post_init__(self) -> None:
        if self.namespace == "":
            raise ConfigurationError(
                "MemoryResourceConfig: namespace is empty; leave it out for the spec's name",
                name="namespace",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryDocumentConfig:
    """One document kind. ``relation`` None: the name of the spec; specs may share one.

    ``tenant_aware`` confines every read and write to the bound tenant. ``ttl_only``: writes
    do not invalidate what this document has cached.
    """

    relation: str | None = None
    tenant_aware: bool = False
    ttl_only: bool = False

    def __post_init__(self) -> None:
        if self.relation == "":
            raise ConfigurationError(
                "MemoryDocumentConfig: relation is empty; leave it out for the spec's name",
                name="relation",
            )


def configured_all(cls: type[K], names: Names[K], where: str) -> dict[str, K] | None:
    """A config for each name; what is wrong with one is a ``ConfigurationError`` naming it."""
    if names is None:
        return None
    if not isinstance(names, Mapping):
        return {name: cls() for name in named(names, where)}
    return {name: configured(cls, value, f"{where}[{name!r}]") for name, value in names.items()}


def named(names: Iterable[str], where: str) -> tuple[str, ...]:
    """The names; one text alone, which would be read as its letters, is refused."""
    if isinstance(names, str):
        raise ConfigurationError(
            f"{where} takes several names, not one text: {{{names!r}}}", name=where
        )
    return tuple(names)
