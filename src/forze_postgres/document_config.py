"""Where a document kind lives: the relations it is read from and written to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, TypeAlias, TypeVar

from forze.errors import ConfigurationError

K = TypeVar("K")

Relation: TypeAlias = tuple[str, str]
"""``(schema, relation)``."""

_LONGEST_NAME_BYTES = 63


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresReadOnlyDocumentConfig:
    """A document kind that is only read. ``read`` is ``(schema, relation)``, a table or a view.

    ``tenant_aware``: the relation has a column ``tenant_id`` (uuid or text), and every read is
    confined to the bound tenant. A cached document over a view names the tables behind it in
    ``invalidated_by`` (``"schema.table"`` or a pair), so that writes to them invalidate it, or
    says ``ttl_only=True``: entries then live out their TTL.
    """

    read: Relation
    tenant_aware: bool = False
    invalidated_by: tuple[str | Relation, ...] = ()
    ttl_only: bool = False

    def __post_init__(self) -> None:
        _check(self)

    @property
    def invalidating(self) -> frozenset[str]:
        """``invalidated_by`` as ``schema.relation``."""
        return frozenset(_name(each) for each in self.invalidated_by)


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresDocumentConfig:
    """A document kind that is read and written. ``write`` is a table, ``read`` it or a view.

    The other fields: :class:`PostgresReadOnlyDocumentConfig`; with ``tenant_aware`` writes are
    confined too, and new rows get the bound tenant.
    """

    read: Relation
    write: Relation
    tenant_aware: bool = False
    invalidated_by: tuple[str | Relation, ...] = ()
    ttl_only: bool = False

    def __post_init__(self) -> None:
        _check(self)

    @property
    def invalidating(self) -> frozenset[str]:
        """``invalidated_by`` as ``schema.relation``."""
        return frozenset(_name(each) for each in self.invalidated_by)


AnyDocumentConfig: TypeAlias = PostgresDocumentConfig | PostgresReadOnlyDocumentConfig


def _check(config: AnyDocumentConfig) -> None:
    owner = type(config).__name__
    for name in ("read", "write"):
        if hasattr(config, name):
            object.__setattr__(config, name, _relation(owner, name, getattr(config, name)))
    for name in ("tenant_aware", "ttl_only"):
        if not isinstance(getattr(config, name), bool):
            raise ConfigurationError(f"{owner}: {name} is True or False", name=name)
    others: Any = config.invalidated_by
    if isinstance(others, str):
        raise ConfigurationError(
            f"{owner}: invalidated_by takes several names; write ({others!r},)",
            name="invalidated_by",
        )
    pairs = (each.split(".") if isinstance(each, str) else each for each in others)
    named = tuple(_relation(owner, "invalidated_by", each) for each in pairs)
    object.__setattr__(config, "invalidated_by", named)


def _relation(owner: str, name: str, value: Any) -> Relation:
    pair = tuple(value) if isinstance(value, tuple | list) else ()
    if len(pair) != 2 or not all(isinstance(each, str) and each for each in pair):
        raise ConfigurationError(
            f"{owner}: {name} takes (schema, relation), two names that are not empty, "
            f"not {value!r}",
            name=name,
        )
    for each in pair:
        if "\0" in each or len(each.encode()) > _LONGEST_NAME_BYTES:
            raise ConfigurationError(
                f"{owner}: {name}: {each!r} is no PostgreSQL name (at most "
                f"{_LONGEST_NAME_BYTES} bytes, no NUL)",
                name=name,
            )
    return pair


def _name(relation: str | Relation) -> str:
    return relation if isinstance(relation, str) else ".".join(relation)


def configured(cls: type[K], value: K | Mapping[str, Any], where: str) -> K:
    """``value`` as a ``cls``; a dict with an unknown or missing key is refused by name."""
    if isinstance(value, cls):
        return value
    if not isinstance(value, Mapping):
        raise ConfigurationError(
            f"{where}: expected {cls.__name__} or a dict, not {type(value).__name__}", name=where
        )
    known = {each.name: each for each in fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(value.keys() - known.keys())
    missing = [name for name, each in known.items() if each.default is MISSING]
    missing = [name for name in missing if name not in value]
    if unknown or missing:
        problem = f"unknown key {unknown[0]!r}" if unknown else f"missing key {missing[0]!r}"
        raise ConfigurationError(
            f"{where}: {problem}; {cls.__name__} takes {', '.join(known)}",
            name=(unknown or missing)[0],
            known=known,
        )
    return cls(**value)
