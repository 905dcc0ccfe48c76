"""Where a document kind lives: the relations it is read from and written to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from forze.errors import ConfigurationError

Relation: TypeAlias = tuple[str, str]
"""``(schema, relation)``."""

_LONGEST_NAME_BYTES = 63


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresReadOnlyDocumentConfig:
    """A document kind that is only read. ``read`` is ``(schema, relation)``, a table or a view.

    ``tenant_aware``: the relation has a column ``tenant_id`` (uuid or text), and every read is
    confined to the bound tenant. A cached document over a view names every table behind it
    (``"schema.table"`` or a pair): in ``invalidated_by`` where a row of the table has the id of
    the document it shows in, so that a write invalidates that document; in ``dropped_by``
    where ids differ (a joined table), so that a write drops everything cached of this kind,
    which scans the cache. Or it says ``ttl_only=True``: entries then live out their TTL.
    """

    read: Relation
    tenant_aware: bool = False
    invalidated_by: tuple[str | Relation, ...] = ()
    dropped_by: tuple[str | Relation, ...] = ()
    ttl_only: bool = False

    def __post_init__(self) -> None:
        _check(self)

    @property
    def invalidating(self) -> frozenset[str]:
        """``invalidated_by`` as ``schema.relation``."""
        return frozenset(_name(each) for each in self.invalidated_by)

    @property
    def dropping(self) -> frozenset[str]:
        """``dropped_by`` as ``schema.relation``."""
        return frozenset(_name(each) for each in self.dropped_by)


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
    dropped_by: tuple[str | Relation, ...] = ()
    ttl_only: bool = False

    def __post_init__(self) -> None:
        _check(self)

    @property
    def invalidating(self) -> frozenset[str]:
        """``invalidated_by`` as ``schema.relation``."""
        return frozenset(_name(each) for each in self.invalidated_by)

    @property
    def dropping(self) -> frozenset[str]:
        """``dropped_by`` as ``schema.relation``."""
        return frozenset(_name(each) for each in self.dropped_by)


AnyDocumentConfig: TypeAlias = PostgresDocumentConfig | PostgresReadOnlyDocumentConfig


def _check(config: AnyDocumentConfig) -> None:
    owner = type(config).__name__
    for name in ("read", "write"):
        if hasattr(config, name):
            object.__setattr__(config, name, checked_relation(owner, name, getattr(config, name)))
    for name in ("tenant_aware", "ttl_only"):
        if not isinstance(getattr(config, name), bool):
            raise ConfigurationError(f"{owner}: {name} is True or False", name=name)
    for name in ("invalidated_by", "dropped_by"):
        others: Any = getattr(config, name)
        if isinstance(others, str):
            raise ConfigurationError(
                f"{owner}: {name} takes several names; write ({others!r},)", name=name
            )
        pairs = (each.split(".") if isinstance(each, str) else each for each in others)
        named = tuple(checked_relation(owner, name, each) for each in pairs)
        object.__setattr__(config, name, named)


def checked_relation(owner: str, name: str, value: Any) -> Relation:
    """``value`` as ``(schema, relation)``; raises ``ConfigurationError`` where it is none."""
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
