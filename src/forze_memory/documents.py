"""Documents in memory: the same answers as the PostgreSQL store, without a server."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any, Generic, TypeVar
from uuid import UUID

import pydantic
from pydantic import BaseModel

from forze.application.contracts.document import (
    DocumentSpec,
    Filters,
    R,
    Relations,
    Sort,
    StoredPage,
)
from forze.application.contracts.tenancy import require_tenant
from forze.application.contracts.transaction import transaction_of
from forze.application.integrations.document.filters import parse_after, parse_filters, parse_sort
from forze.domain.models import Document, utcnow
from forze.errors import (
    BackendCorrupt,
    ConfigurationError,
    ConflictError,
    NotFoundError,
    RevisionMismatch,
)
from forze_memory.columns import columns_of, stored
from forze_memory.config import MemoryDocumentConfig
from forze_memory.matching import compare, matcher, order
from forze_memory.transactions import MemoryDatabase, Row, Statement

M = TypeVar("M", bound=BaseModel)


class MemoryDocumentStore(Generic[R]):
    """One document kind. Implements ``DocumentStore``."""

    def __init__(
        self,
        database: MemoryDatabase,
        spec: DocumentSpec[R, Any, Any],
        config: MemoryDocumentConfig,
    ) -> None:
        self._name = spec.name
        self._read = spec.read
        self._domain = None if spec.write_types is None else spec.write_types.domain
        self._tenant_aware = config.tenant_aware
        self._database = database
        self._table = database.table(config.relation or spec.name)
        if self._domain is not None:
            self._table.columns.update(self._domain.model_fields)
        relation = frozenset({f"memory.{self._table.name}"})
        self._relations = Relations(
            reads=relation,
            writes=relation if self._domain is not None else frozenset(),
            ttl_only=config.ttl_only,
            tenant_aware=config.tenant_aware,
        )

    @property
    def manager(self) -> MemoryDatabase:
        return self._database

    @property
    def relations(self) -> Relations:
        return self._relations

    async def check(self) -> None:
        """Every field to read must be one that some document of the relation writes."""
        columns = self._table.columns
        required = {name for name, field in self._read.model_fields.items() if field.is_required()}
        missing = sorted(required - columns) if columns else []
        if missing:
            raise ConfigurationError(
                f"document {self._name!r}: {self._read.__name__} reads {missing[0]!r}, which no "
                f"domain model of the relation {self._table.name!r} has; they have "
                f"{', '.join(sorted(columns))}",
                name=missing[0],
                known=columns,
            )

    # -- reads ---------------------------------------------------------------

    async def fetch(self, ids: Sequence[UUID], *, for_update: bool = False) -> dict[UUID, R]:
        tenant = self._tenant()
        async with self._database.statement(self._table, writes=for_update) as statement:
            if for_update:
                for pk in sorted(set(ids)):
                    await self._lock(statement, tenant, pk)
            rows = {pk: self._visible(statement, tenant, pk) for pk in ids}
            return {pk: self._load(self._read, row) for pk, row in rows.items() if row is not None}

    async def find(
        self,
        filters: Filters,
        sort: Sort,
        limit: int,
        after: Sequence[Any] | None,
    ) -> StoredPage[R]:
        tenant, holds = self._tenant(), self._matcher(filters)
        keys = parse_sort(self._read, sort)
        start = None if after is None else stored(parse_after(self._read, keys, after))
        async with self._database.statement(self._table, writes=False) as statement:
            matching = [row for _, row in self._matching(statement, tenant, holds)]
            if start is not None:
                matching = [
                    row
                    for row in matching
                    if compare([row.columns.get(key.field) for key in keys], start, keys) > 0
                ]
            by_key = order(keys)
            matching.sort(key=lambda row: by_key(row.columns))
            items = [self._load(self._read, row) for row in matching[:limit]]
            return StoredPage(items, len(matching) > limit)

    async def find_ids(self, filters: Filters, sort: Sort, limit: int) -> list[UUID]:
        tenant, holds = self._tenant(), self._matcher(filters)
        by_key = order(parse_sort(self._read, sort))
        async with self._database.statement(self._table, writes=False) as statement:
            matching = self._matching(statement, tenant, holds)
            matching.sort(key=lambda each: by_key(each[1].columns))
            return [pk for pk, _ in matching[:limit]]

    async def count(self, filters: Filters) -> int:
        tenant, holds = self._tenant(), self._matcher(filters)
        async with self._database.statement(self._table, writes=False) as statement:
            return len(self._matching(statement, tenant, holds))

    async def domain(self, id: UUID) -> Document | None:
        if transaction_of(self._database) is None:
            raise ConfigurationError(
                f"document {self._name!r}: the domain model is read to be written back, which "
                "needs a transaction; open one with `async with ctx.transaction(...)`",
                name=self._name,
            )
        tenant = self._tenant()
        async with self._database.statement(self._table, writes=True) as statement:
            row = await self._lock(statement, tenant, id)
            return None if row is None else self._load(self._writable(), row)

    # -- writes --------------------------------------------------------------

    async def insert(self, documents: Sequence[Document]) -> list[R]:
        tenant = self._tenant()
        async with self._database.statement(self._table, writes=True) as statement:
            for document in sorted(documents, key=lambda each: each.id):
                await statement.session.lock(self._table, document.id, statement.until)
                if statement.session.row(self._table, document.id) is not None:
                    raise ConflictError(
                        f"{self._name}: there is a document {document.id} already; choose another "
                        "id, or update that one",
                        resource=self._name,
                    )
                row = Row(tenant, columns_of(document))
                statement.session.write(self._table, document.id, row)
            rows = (statement.session.row(self._table, each.id) for each in documents)
            return [self._load(self._read, row) for row in rows if row is not None]

    async def update(self, id: UUID, rev: int, values: Mapping[str, Any]) -> R:
        tenant = self._tenant()
        async with self._database.statement(self._table, writes=True) as statement:
            row = await self._existing(statement, tenant, id)
            current = row.columns["rev"]
            if current != rev:
                raise RevisionMismatch(resource=self._name, id=id, expected=rev, current=current)
            return self._load(self._read, self._change(statement, id, row, values) or row)

    async def update_matching(self, filters: Filters, values: Mapping[str, Any]) -> list[UUID]:
        tenant, holds = self._tenant(), self._matcher(filters)
        async with self._database.statement(self._table, writes=True) as statement:
            return [
                pk
                for pk, row in await self._lock_matching(statement, tenant, holds)
                if self._change(statement, pk, row, values) is not None
            ]

    async def touch(self, id: UUID) -> R:
        tenant = self._tenant()
        async with self._database.statement(self._table, writes=True) as statement:
            row = await self._existing(statement, tenant, id)
            return self._load(self._read, self._advance(statement, id, row, {}))

    async def delete(self, ids: Sequence[UUID]) -> list[UUID]:
        tenant = self._tenant()
        async with self._database.statement(self._table, writes=True) as statement:
            there = [
                pk for pk in sorted(set(ids)) if await self._lock(statement, tenant, pk) is not None
            ]
            for pk in there:
                statement.session.write(self._table, pk, None)
            return there

    async def delete_matching(self, filters: Filters) -> list[UUID]:
        tenant, holds = self._tenant(), self._matcher(filters)
        async with self._database.statement(self._table, writes=True) as statement:
            locked = await self._lock_matching(statement, tenant, holds)
            for pk, _ in locked:
                statement.session.write(self._table, pk, None)
            return [pk for pk, _ in locked]

    # -- rows ----------------------------------------------------------------

    def _tenant(self) -> str | None:
        return require_tenant(f"document {self._name!r}") if self._tenant_aware else None

    def _matcher(self, filters: Filters) -> Callable[[Mapping[str, Any]], bool]:
        return matcher(parse_filters(self._read, filters))

    def _visible(self, statement: Statement, tenant: str | None, pk: UUID) -> Row | None:
        row = statement.session.row(self._table, pk)
        return row if row is not None and (tenant is None or row.tenant == tenant) else None

    def _matching(
        self, statement: Statement, tenant: str | None, holds: Callable[[Mapping[str, Any]], bool]
    ) -> list[tuple[UUID, Row]]:
        return [
            (pk, row)
            for pk, row in statement.session.rows(self._table)
            if (tenant is None or row.tenant == tenant) and holds(row.columns)
        ]

    async def _lock(self, statement: Statement, tenant: str | None, pk: UUID) -> Row | None:
        """The row as it is once it is ours; None, and not locked, if there is none."""
        if self._visible(statement, tenant, pk) is None:
            return None
        await statement.session.lock(self._table, pk, statement.until)
        return self._visible(statement, tenant, pk)

    async def _existing(self, statement: Statement, tenant: str | None, pk: UUID) -> Row:
        row = await self._lock(statement, tenant, pk)
        if row is None:
            raise NotFoundError(
                f"{self._name}: no document {pk}; it was never created, or has been removed",
                resource=self._name,
                ids=(pk,),
            )
        return row

    async def _lock_matching(
        self, statement: Statement, tenant: str | None, holds: Callable[[Mapping[str, Any]], bool]
    ) -> list[tuple[UUID, Row]]:
        """Every match, locked in the order of ids, and still a match once it is."""
        locked: list[tuple[UUID, Row]] = []
        for pk, _ in sorted(self._matching(statement, tenant, holds), key=lambda each: each[0]):
            row = await self._lock(statement, tenant, pk)
            if row is not None and holds(row.columns):
                locked.append((pk, row))
        return locked

    def _change(
        self, statement: Statement, pk: UUID, row: Row, values: Mapping[str, Any]
    ) -> Row | None:
        """Write what differs; the row as it is now, None if nothing does."""
        columns = {name: stored(value) for name, value in values.items()}
        if all(name in row.columns and row.columns[name] == columns[name] for name in columns):
            return None
        return self._advance(statement, pk, row, columns)

    def _advance(self, statement: Statement, pk: UUID, row: Row, columns: Mapping[str, Any]) -> Row:
        own = {
            "rev": row.columns["rev"] + 1,
            "last_update_at": max(utcnow(), row.columns["last_update_at"]),
        }
        changed = row._replace(columns={**row.columns, **columns, **own})
        statement.session.write(self._table, pk, changed)
        return changed

    def _writable(self) -> type[Document]:
        if self._domain is None:
            raise ConfigurationError(
                f"document {self._name!r} is read-only: its DocumentSpec has no write=",
                name=self._name,
            )
        return self._domain

    def _load(self, model: type[M], row: Row) -> M:
        columns = {name: row.columns[name] for name in model.model_fields if name in row.columns}
        try:
            return model.model_validate(deepcopy(columns), by_name=True)
        except pydantic.ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
            field = ".".join(str(part) for part in first["loc"])
            raise BackendCorrupt(
                f"{self._name} {row.columns['id']}: what is stored does not fit "
                f"{model.__name__} ({field}: {first['msg']}); change the model, or the document",
                backend="memory",
            ) from error
