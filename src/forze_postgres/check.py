"""Whether a document kind fits its relations: pure, over what the catalog said."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from forze.application.contracts.document import DocumentSpec
from forze_postgres.catalog import Name, Shape, misfits, shown, unfilled
from forze_postgres.columns import Columns
from forze_postgres.document_config import AnyDocumentConfig, PostgresDocumentConfig
from forze_postgres.statements import TENANT


class Wanted:
    """What a document kind asks of the database."""

    def __init__(
        self,
        spec: DocumentSpec[Any, Any, Any],
        config: AnyDocumentConfig,
        reading: Columns[Any],
        writing: Columns[Any] | None,
    ) -> None:
        self.read: Name = config.read
        self.write: Name | None = (
            config.write if isinstance(config, PostgresDocumentConfig) else None
        )
        self.reading = reading
        self.writing = writing
        self.tenant_aware = config.tenant_aware
        self.cached = spec.cache is not None
        self.ttl_only = config.ttl_only
        self.invalidating = config.invalidating | config.dropping
        self.names = [self.read] + ([self.write] if self.write not in (None, self.read) else [])


def problems(wanted: Wanted, found: Mapping[Name, Shape]) -> list[str]:
    """Everything that does not fit, in the order of relations and columns; empty if all does."""
    missing = [f"{shown(name)} does not exist" for name in wanted.names if name not in found]
    if missing:
        return missing
    read = found[wanted.read]
    wrong = misfits(read, wanted.reading.fields.values(), reading=True)
    wrong += _tenant(wanted, read)
    if wanted.write is not None:
        write = found[wanted.write]
        if write is not read:
            wrong += _tenant(wanted, write)
        wrong += _writing(wanted, write)
    if wanted.cached and not wanted.ttl_only:
        wrong += _unseen(wanted, read)
    return list(dict.fromkeys(wrong))


def _tenant(wanted: Wanted, shape: Shape) -> list[str]:
    if not wanted.tenant_aware:
        return []
    column = shape.columns.get(TENANT)
    if column is None:
        return [f"{shape.name}.{TENANT} is missing; expected uuid or text (tenant_aware=True)"]
    if column.type not in ("uuid", "text", "varchar"):
        return [f"{shape.name}.{TENANT} is {column.shown}; expected uuid or text"]
    return []


def _writing(wanted: Wanted, shape: Shape) -> list[str]:
    if shape.kind not in ("r", "p"):
        return [f"{shape.name} is not a table; expected one as write="]
    if wanted.writing is None:
        return []
    filled = {*wanted.writing.names, *([TENANT] if wanted.tenant_aware else [])}
    wrong = misfits(shape, wanted.writing.fields.values(), reading=False)
    wrong += unfilled(shape, filled)
    unique = {frozenset({"id"})} | ({frozenset({"id", TENANT})} if wanted.tenant_aware else set())
    if not unique & set(shape.keys):
        wrong.append(f"{shape.name}.id is not unique; expected PRIMARY KEY or a unique index")
    return wrong


def _unseen(wanted: Wanted, read: Shape) -> list[str]:
    """Tables whose writes would leave cached entries stale without anybody having said so."""
    if read.kind == "m":
        return [
            f"{read.name} is a materialized view, which writes do not change; a cached document "
            "over it needs ttl_only=True"
        ]
    told = wanted.invalidating | ({shown(wanted.write)} if wanted.write else set())
    unseen = sorted(read.made_of - told)
    if not unseen:
        return []
    return [
        f"{read.name} is a view of {', '.join(unseen)}, and a write there would leave cached "
        f"entries stale; name {'it' if len(unseen) == 1 else 'them'} in invalidated_by= (its ids "
        "are those of the documents) or dropped_by= (they are others), or say ttl_only=True"
    ]
