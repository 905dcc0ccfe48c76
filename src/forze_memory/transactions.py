"""Tables of rows, and transactions over them, with the rules PostgreSQL has.

Committed rows never change in place. A session collects its changes beside them and puts
them in their place at its commit, all in one turn of the loop, so that nobody sees half of
a transaction. A row that a session has written (or locked) is its own until it ends; who
wants to write it waits, and then looks at the row again.

Read committed looks at what is committed when a statement runs; repeatable read and
serializable look at what was committed when the transaction's first statement ran, and
refuse a commit that builds on something changed since: the row written (repeatable read),
any table read (serializable, coarser than PostgreSQL's own check).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, NamedTuple, TypeAlias
from uuid import UUID

from forze.application.contracts.tenancy import current_deadline
from forze.application.contracts.transaction import IsolationLevel, transaction_of
from forze.errors import BackendTimeout, ConflictError, NotFoundError, RevisionMismatch

STATEMENT_LIMIT = timedelta(seconds=4)
"""How long a write outside a transaction may wait for a row; below an intent's deadline."""


class Row(NamedTuple):
    """A stored document: its tenant where the table has tenants, and its columns."""

    tenant: str | None
    columns: Mapping[str, Any]


Rows: TypeAlias = dict[UUID, Row]


class Table:
    """The committed rows of one relation, and who has which row locked."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.rows: Rows = {}
        self.locks: dict[UUID, MemorySession] = {}
        self.columns: set[str] = set()
        self.version = 0


class MemorySession:
    """An open transaction. Implements ``TransactionSession``."""

    def __init__(self, isolation: IsolationLevel | None, *, read_only: bool) -> None:
        self.isolation = isolation or "read committed"
        self.read_only = read_only
        self.failed = False
        self.waits_for: MemorySession | None = None
        self._changes: dict[Table, dict[UUID, Row | None]] = {}
        self._snapshot: dict[Table, tuple[int, Rows]] | None = None
        self._used: set[Table] = set()
        self._locked: list[tuple[Table, UUID]] = []
        self._ended = asyncio.Event()

    # -- rows ----------------------------------------------------------------

    def row(self, table: Table, pk: UUID) -> Row | None:
        """The row as this transaction sees it now."""
        changes = self._changes.get(table, {})
        return changes[pk] if pk in changes else self._base(table).get(pk)

    def rows(self, table: Table) -> Iterator[tuple[UUID, Row]]:
        """Every row of the table as this transaction sees it now."""
        changes = self._changes.get(table, {})
        for pk, row in {**self._base(table), **changes}.items():
            if row is not None:
                yield pk, row

    def write(self, table: Table, pk: UUID, row: Row | None) -> None:
        """Replace a locked row (None removes it)."""
        self._changes.setdefault(table, {})[pk] = row

    async def lock(self, table: Table, pk: UUID, until: float | None) -> None:
        """Make the row this transaction's own; waits for another one's end, at most ``until``."""
        self._refuse_ended(table)
        while (holder := table.locks.get(pk)) is not None and holder is not self:
            self._refuse_deadlock(holder, table, pk)
            self.waits_for = holder
            try:
                async with asyncio.timeout_at(until):
                    await holder._ended.wait()
            except TimeoutError:
                raise BackendTimeout(
                    f"{table.name} {pk}: another transaction holds the document and did not end "
                    "in time; nothing was changed, retry",
                    backend="memory",
                ) from None
            finally:
                self.waits_for = None
            self._refuse_ended(table)
        if holder is None:
            table.locks[pk] = self
            self._locked.append((table, pk))
        self._refuse_lost_update(table, pk)

    def _base(self, table: Table) -> Rows:
        if self._snapshot is None:
            return table.rows
        return self._snapshot[table][1] if table in self._snapshot else {}

    def _refuse_deadlock(self, holder: MemorySession | None, table: Table, pk: UUID) -> None:
        while holder is not None:
            if holder is self:
                raise ConflictError(
                    f"{table.name} {pk}: deadlock, two transactions wait for each other's "
                    "documents; retry the transaction, and lock documents in one order",
                    resource=table.name,
                )
            holder = holder.waits_for

    def _refuse_ended(self, table: Table) -> None:
        if self._ended.is_set():
            raise ConflictError(
                f"{table.name}: the transaction ended while a task begun in it was still writing; "
                "await the task inside the block",
                resource=table.name,
            )

    def _refuse_lost_update(self, table: Table, pk: UUID) -> None:
        mine = pk in self._changes.get(table, {})
        if not mine and self._base(table).get(pk) is not table.rows.get(pk):
            raise self._unserializable(table)

    def _unserializable(self, table: Table) -> ConflictError:
        return ConflictError(
            f"{table.name}: could not serialize, another transaction changed it since this "
            f"{self.isolation} one began; retry the transaction",
            resource=table.name,
        )

    # -- the end -------------------------------------------------------------

    def use(self, table: Table, tables: Iterable[Table]) -> None:
        """Note that a statement runs on ``table``; the first one fixes what later ones see."""
        if self.isolation != "read committed" and self._snapshot is None:
            self._snapshot = {each: (each.version, dict(each.rows)) for each in tables}
        self._used.add(table)

    async def commit(self) -> None:
        """Put every change in place at once."""
        try:
            if self.failed:
                raise ConflictError(
                    "the transaction was rolled back instead of committed: a statement in it "
                    "failed, and its error was caught inside the block; let it leave the block"
                )
            self._refuse_stale_reads()
            for table, changes in self._changes.items():
                for pk, row in changes.items():
                    if row is None:
                        table.rows.pop(pk, None)
                    else:
                        table.rows[pk] = row
                table.version += bool(changes)
        finally:
            self._end()

    async def rollback(self) -> None:
        """Forget every change."""
        self._end()

    def _refuse_stale_reads(self) -> None:
        if self.isolation != "serializable" or not self._changes or self._snapshot is None:
            return
        for table in self._used:
            version = self._snapshot[table][0] if table in self._snapshot else 0
            if table.version != version:
                raise self._unserializable(table)

    def _end(self) -> None:
        for table, pk in self._locked:
            if table.locks.get(pk) is self:
                del table.locks[pk]
        self._locked.clear()
        self._changes.clear()
        self._ended.set()


class MemoryDatabase:
    """The tables of one module. Implements ``TransactionManager``."""

    def __init__(self) -> None:
        self._tables: dict[str, Table] = {}

    def table(self, name: str) -> Table:
        """The table of a relation; made when first asked for."""
        return self._tables.setdefault(name, Table(name))

    async def begin(self, *, isolation: IsolationLevel | None, read_only: bool) -> MemorySession:
        """Open a transaction."""
        return MemorySession(isolation, read_only=read_only)

    @asynccontextmanager
    async def statement(self, table: Table, *, writes: bool) -> AsyncIterator[Statement]:
        """One statement: in the task's transaction, or in one of its own that commits at the end.

        A statement that fails fails its transaction, as in PostgreSQL; that a document is not
        there, or was changed since, is an answer and no failure.
        """
        await asyncio.sleep(0)
        carried = transaction_of(self)
        session = carried.session if carried is not None else MemorySession(None, read_only=False)
        assert isinstance(session, MemorySession)
        _refuse(session, writes=writes)
        session.use(table, self._tables.values())
        try:
            yield Statement(session, _until(alone=carried is None))
        except BaseException as error:
            if carried is None:
                await session.rollback()
            elif not isinstance(error, NotFoundError | RevisionMismatch):
                session.failed = True
            raise
        if carried is None:
            await session.commit()


class Statement(NamedTuple):
    """What a statement runs in, and until when it may wait for a row (the loop's time)."""

    session: MemorySession
    until: float | None


def _refuse(session: MemorySession, *, writes: bool) -> None:
    if session.failed:
        raise ConflictError(
            "the transaction has failed: an earlier statement in it raised, and the error was "
            "caught inside the block; let it leave the block"
        )
    if writes and session.read_only:
        raise ConflictError(
            "the transaction is read-only; open it without read_only=True to write in it"
        )


def _until(*, alone: bool) -> float | None:
    """When a wait for a row ends: the statement's limit, and the task's own deadline."""
    limits = [STATEMENT_LIMIT.total_seconds()] if alone else []
    deadline = current_deadline()
    if deadline is not None:
        limits.append(deadline - time.monotonic())
    return asyncio.get_running_loop().time() + min(limits) if limits else None
