"""Documents in PostgreSQL: plain reads and writes of one document kind, no cache.

Inside a transaction of the client every call runs on it; outside, each statement commits by
itself. Where the read model comes from another relation than the one written to, it is
selected from there after the write.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Generic
from uuid import UUID

import asyncpg

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
from forze.application.integrations.document.filters import (
    Condition,
    parse_after,
    parse_filters,
    parse_sort,
)
from forze.domain.models import Document
from forze.errors import (
    BackendError,
    ConfigurationError,
    ConflictError,
    NotFoundError,
    RevisionMismatch,
    ValidationError,
)
from forze_postgres.catalog import SHAPES_SQL, shapes, shown
from forze_postgres.check import Wanted, problems
from forze_postgres.client import PostgresClient
from forze_postgres.columns import Columns
from forze_postgres.document_config import AnyDocumentConfig, PostgresDocumentConfig
from forze_postgres.sql import Arguments, after_sql, condition_sql, order_sql
from forze_postgres.statements import TENANT, Statements
from forze_postgres.transaction import PostgresTransactionManager

OWN_FIELDS = frozenset({"id", "rev", "created_at", "last_update_at"})
_ATTEMPTS = 3


class PostgresDocumentStore(Generic[R]):
    """One document kind. Implements ``DocumentStore``."""

    def __init__(
        self,
        client: PostgresClient,
        spec: DocumentSpec[R, Any, Any],
        config: AnyDocumentConfig,
    ) -> None:
        types = spec.write_types
        write = config.write if isinstance(config, PostgresDocumentConfig) else None
        if types is not None and write is None:
            raise ConfigurationError(
                f"document {spec.name!r} has write= in its DocumentSpec, and is registered in "
                "ro_documents; register it in rw_documents, or leave write= out",
                name=spec.name,
            )
        self._name = spec.name
        self._client = client
        self._tenant_aware = config.tenant_aware
        self._columns: Columns[R] = Columns(spec.read)
        self._stored = None if types is None else Columns(types.domain)
        self._one_relation = write is None or write == config.read
        self._sql = Statements(
            read=config.read,
            write=write or config.read,
            reading=self._columns.names,
            writing=() if self._stored is None else self._stored.names,
            tenant_aware=config.tenant_aware,
        )
        writes = frozenset() if write is None else frozenset({shown(write)})
        self._relations = Relations(
            reads=frozenset({shown(config.read)}) | writes | config.invalidating,
            writes=writes,
            joined=config.dropping,
            ttl_only=config.ttl_only,
            tenant_aware=config.tenant_aware,
        )
        self._wanted = Wanted(spec, config, self._columns, self._stored)
        self._checked = False
        self._uuid_tenants = False
        self._checks: dict[asyncio.AbstractEventLoop, asyncio.Lock] = {}

    @property
    def manager(self) -> PostgresTransactionManager:
        """The client's transactions; the same object for every store of the client."""
        return self._client.manager

    @property
    def relations(self) -> Relations:
        """What is read and written, as ``schema.relation``."""
        return self._relations

    async def check(self) -> None:
        """Compare the relations with the models; one query.

        Raises ``ConfigurationError`` naming every column that does not fit.
        """
        names = self._wanted.names
        rows = await self._client.rows(
            SHAPES_SQL,
            [schema for schema, _ in names],
            [relation for _, relation in names],
            doing=f"checking the relations of {self._name}",
        )
        found = shapes(rows)
        wrong = problems(self._wanted, found)
        if wrong:
            raise ConfigurationError(
                f"document {self._name!r} does not fit the database: {'; '.join(wrong)}. "
                "Migrate the database, or change the models or the config",
                name=self._name,
            )
        tenant = found[self._wanted.read].columns.get(TENANT)
        self._uuid_tenants = tenant is not None and tenant.type == "uuid"
        self._checked = True

    async def _ready(self) -> None:
        """Check before the first use; callers that come meanwhile wait for that check."""
        if self._checked:
            return
        if transaction_of(self.manager) is not None:
            # Waiting here for a check that waits for a connection could wait for ourselves.
            await self.check()
            return
        loop = asyncio.get_running_loop()
        async with self._checks.setdefault(loop, asyncio.Lock()):
            if not self._checked:
                await self.check()
        self._checks.pop(loop, None)

    # -- reads ---------------------------------------------------------------

    async def fetch(self, ids: Sequence[UUID], *, for_update: bool = False) -> dict[UUID, R]:
        """Those that exist, in one query; ``for_update`` locks their rows, in the order of ids."""
        tenant = self._tenant()
        await self._ready()
        if not ids:
            return {}
        if for_update:
            return await self._fetch_locked(ids, tenant)
        return await self._select(ids, tenant)

    async def _select(self, ids: Sequence[UUID], tenant: tuple[str, ...]) -> dict[UUID, R]:
        doing = f"reading {self._name}"
        if len(ids) == 1:
            rows = await self._client.rows(self._sql.one, ids[0], *tenant, doing=doing)
        else:
            rows = await self._client.rows(self._sql.many, _texts(ids), *tenant, doing=doing)
        return self._by_id(rows)

    async def _fetch_locked(self, ids: Sequence[UUID], tenant: tuple[str, ...]) -> dict[UUID, R]:
        doing = f"locking {self._name}"
        rows = await self._client.rows(self._sql.locked, _texts(ids), *tenant, doing=doing)
        if self._one_relation:
            return self._by_id(rows)
        return await self._select([row["id"] for row in rows], tenant) if rows else {}

    async def find(
        self,
        filters: Filters,
        sort: Sort,
        limit: int,
        after: Sequence[Any] | None,
    ) -> StoredPage[R]:
        """A page by keyset: no page costs more than the first, given an index."""
        tenant = self._tenant()
        model, fields = self._columns.model, self._columns.fields
        arguments = Arguments(*tenant)
        keys = parse_sort(model, sort)
        terms = self._terms(filters, arguments)
        if after is not None:
            values = parse_after(model, keys, after)
            terms.append(after_sql(keys, values, fields, self._columns.encode, arguments))
        sql = self._sql.page(terms, order_sql(keys, fields), arguments.bind(limit + 1))
        await self._ready()
        rows = await self._client.rows(sql, *arguments.values, doing=f"finding {self._name}")
        return StoredPage([self._columns.load(row) for row in rows[:limit]], len(rows) > limit)

    async def find_ids(self, filters: Filters, sort: Sort, limit: int) -> list[UUID]:
        """The ids of what matches, in order; nothing else is read from the rows."""
        arguments = Arguments(*self._tenant())
        terms = self._terms(filters, arguments)
        order = order_sql(parse_sort(self._columns.model, sort), self._columns.fields)
        sql = self._sql.ids(terms, order, arguments.bind(limit))
        await self._ready()
        rows = await self._client.rows(sql, *arguments.values, doing=f"finding {self._name}")
        return _ids(rows)

    async def count(self, filters: Filters) -> int:
        """How many documents match."""
        arguments = Arguments(*self._tenant())
        sql = self._sql.count(self._terms(filters, arguments))
        await self._ready()
        rows = await self._client.rows(sql, *arguments.values, doing=f"counting {self._name}")
        return int(rows[0][0])

    async def domain(self, id: UUID) -> Document | None:
        """The stored document as its domain model, its row locked; needs a transaction."""
        stored, tenant = self._writable(), self._tenant()
        if transaction_of(self.manager) is None:
            raise ConfigurationError(
                f"document {self._name!r}: the domain model is read to be written back, which "
                "needs a transaction; open one with `async with ctx.transaction(...)`",
                name=self._name,
            )
        await self._ready()
        doing = f"locking {self._name} {id}"
        rows = await self._client.rows(self._sql.domain, id, *tenant, doing=doing)
        return stored.load(rows[0]) if rows else None

    # -- writes --------------------------------------------------------------

    async def insert(self, documents: Sequence[Document]) -> list[R]:
        """All or none, in one round trip; a duplicate id is a ``ConflictError`` naming it."""
        stored, tenant = self._writable(), self._tenant()
        names = self._sql.inserted
        lines = [
            (*(stored.encode(name, getattr(each, name)) for name in names), *tenant)
            for each in documents
        ]
        await self._ready()
        doing = f"creating {self._name}"
        try:
            if len(lines) == 1:
                rows = await self._client.rows(self._sql.insert, *lines[0], doing=doing, write=True)
            else:
                rows = await self._client.rows_of_each(self._sql.insert, lines, doing=doing)
        except ConflictError as error:
            error.resource = self._name
            raise
        ids = [each.id for each in documents]
        found = await self._as_read(rows, ids, tenant)
        return [found[each] for each in ids]

    async def update(self, id: UUID, rev: int, values: Mapping[str, Any]) -> R:
        """One statement if ``rev`` is current and something differs, two to tell what is not so."""
        names, encoded = self._encoded(values)
        tenant = self._tenant()
        await self._ready()
        doing = f"updating {self._name} {id}"
        for _ in range(_ATTEMPTS):
            if names:
                sql = self._sql.update(names)
                rows = await self._client.rows(
                    sql, id, rev, *encoded, *tenant, doing=doing, write=True
                )
                if rows:
                    return (await self._as_read(rows, [id], tenant))[id]
            sql = self._sql.current(names)
            rows = await self._client.rows(sql, id, *encoded, *tenant, doing=doing)
            if not rows:
                raise self._not_found(id)
            if rows[0]["rev"] != rev:
                raise RevisionMismatch(
                    resource=self._name, id=id, expected=rev, current=rows[0]["rev"]
                )
            if not rows[0][self._sql.differs]:
                return await self._unchanged(id, tenant)
        raise ConflictError(
            f"{doing}: the document is being changed all the time; try again", resource=self._name
        )

    async def _unchanged(self, id: UUID, tenant: tuple[str, ...]) -> R:
        found = await self._select([id], tenant)
        if id not in found:
            raise self._not_found(id)
        return found[id]

    async def update_matching(self, filters: Filters, values: Mapping[str, Any]) -> list[UUID]:
        """One statement; rows whose values are equal already are left alone."""
        names, encoded = self._encoded(values)
        arguments = Arguments(*self._tenant())
        terms = self._terms(filters, arguments, writing=True)
        if not names:
            return []
        await self._ready()
        sql = self._sql.update_matching(names, [arguments.bind(each) for each in encoded], terms)
        return await self._ids(sql, arguments.values, f"updating {self._name} by filter")

    async def touch(self, id: UUID) -> R:
        """Raise ``rev`` and ``last_update_at``; one statement."""
        self._writable()
        tenant = self._tenant()
        await self._ready()
        doing = f"touching {self._name} {id}"
        rows = await self._client.rows(self._sql.touch, id, *tenant, doing=doing, write=True)
        if not rows:
            raise self._not_found(id)
        return (await self._as_read(rows, [id], tenant))[id]

    async def delete(self, ids: Sequence[UUID]) -> list[UUID]:
        """Remove, in one statement; the ids that existed."""
        self._writable()
        tenant = self._tenant()
        await self._ready()
        return await self._ids(self._sql.delete, [_texts(ids), *tenant], f"removing {self._name}")

    async def delete_matching(self, filters: Filters) -> list[UUID]:
        """Remove every match, in one statement."""
        self._writable()
        arguments = Arguments(*self._tenant())
        terms = self._terms(filters, arguments, writing=True)
        await self._ready()
        sql = self._sql.delete_matching(terms)
        return await self._ids(sql, arguments.values, f"removing {self._name} by filter")

    # -- inside --------------------------------------------------------------

    def _tenant(self) -> tuple[str, ...]:
        if not self._tenant_aware:
            return ()
        tenant = require_tenant(f"document {self._name!r}")
        if self._uuid_tenants and not _canonical(tenant):
            raise ValidationError(
                f"document {self._name!r}: its tenants are UUIDs and {tenant!r} is not the "
                "canonical text of one; bind the UUID itself (one tenant under two spellings "
                "would be two in the cache)",
                field="tenant",
            )
        return (tenant,)

    def _writable(self) -> Columns[Document]:
        if self._stored is None:
            raise ConfigurationError(
                f"document {self._name!r} is read-only: its DocumentSpec has no write=",
                name=self._name,
            )
        return self._stored

    def _terms(self, filters: Filters, arguments: Arguments, *, writing: bool = False) -> list[str]:
        conditions = parse_filters(self._columns.model, filters)
        if writing and not self._one_relation:
            self._refuse_read_only(conditions)
        return [condition_sql(each, self._columns.encode, arguments) for each in conditions]

    def _refuse_read_only(self, conditions: Sequence[Condition]) -> None:
        stored = self._writable().names
        for each in conditions:
            if each.field not in stored:
                raise ValidationError(
                    f"{self._name}: {each.field!r} is only in the relation that is read; a write "
                    f"can be filtered by {', '.join(stored)}",
                    field=each.field,
                )

    def _encoded(self, values: Mapping[str, Any]) -> tuple[tuple[str, ...], list[Any]]:
        """The names to set, in a fixed order, and their values for the driver."""
        stored = self._writable()
        fixed = OWN_FIELDS | ({"tenant_id"} if self._tenant_aware else set())
        refused = sorted((values.keys() - set(stored.names)) | (values.keys() & fixed))
        if refused:
            raise ValidationError(
                f"{self._name}: an update cannot set {', '.join(refused)}; it can set "
                f"{', '.join(name for name in stored.names if name not in fixed)}",
                field=refused[0],
            )
        names = tuple(sorted(values))
        return names, [stored.encode(name, values[name]) for name in names]

    def _by_id(self, rows: Sequence[asyncpg.Record]) -> dict[UUID, R]:
        load = self._columns.load
        documents = (load(row) for row in rows)
        return {each.id: each for each in documents}

    async def _as_read(
        self, rows: Sequence[asyncpg.Record], ids: Sequence[UUID], tenant: tuple[str, ...]
    ) -> dict[UUID, R]:
        """The read models of what was just written."""
        if self._one_relation:
            return self._by_id(rows)
        try:
            found = await self._select(ids, tenant)
        except BackendError as error:
            if transaction_of(self.manager) is None:
                error.outcome = "committed"
            raise
        hidden = [each for each in ids if each not in found]
        if hidden:
            raise NotFoundError(
                f"{self._name} {hidden[0]} was written, but the relation it is read from does "
                "not show it; let the view include it",
                resource=self._name,
                ids=hidden,
            )
        return found

    async def _ids(self, sql: str, values: Sequence[Any], doing: str) -> list[UUID]:
        return _ids(await self._client.rows(sql, *values, doing=doing, write=True))

    def _not_found(self, id: UUID) -> NotFoundError:
        return NotFoundError(
            f"{self._name}: no document {id}; it was never created, or has been removed",
            resource=self._name,
            ids=(id,),
        )


def _ids(rows: Sequence[asyncpg.Record]) -> list[UUID]:
    return [UUID(int=row["id"].int) for row in rows]


def _texts(ids: Sequence[UUID]) -> list[str]:
    return [str(each) for each in ids]


def _canonical(tenant: str) -> bool:
    try:
        return str(UUID(tenant)) == tenant
    except ValueError:
        return False
