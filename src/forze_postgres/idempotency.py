"""Idempotency records in PostgreSQL: an answer is committed with the effect, or not at all.

A claim is taken, kept up and freed on a connection of its own, so that others see it at once
whatever transaction the caller has open. The answer is written where the effect is: inside the
caller's transaction on the same client, where there is one. That write locks the record until
the transaction ends, and finds it only while the claim is the owner's: a transaction whose
owner was taken over is refused instead of committed.

Leases and lifetimes are counted by the database's clock. A claim whose record is locked is
refused at once (``SKIP LOCKED``) and never waits for the transaction.

The table is the application's to make (``idempotency_table_sql()``, as a migration) and is
checked at start. Expired rows are removed a thousand at a time, at most once a minute by each
process that begins operations.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from forze.application.contracts.deps import Resolver
from forze.application.contracts.idempotency import IdempotencySnapshot, IdempotencySpec
from forze.application.contracts.tenancy import require_tenant
from forze.application.contracts.transaction import OPEN, Transaction, transaction_of
from forze.application.integrations.idempotency.names import record_parts
from forze.application.integrations.idempotency.packing import head_of, snapshot_of
from forze.application.integrations.idempotency.port import StoredIdempotency
from forze.application.integrations.idempotency.record import (
    Answer,
    Busy,
    Completed,
    Granted,
    How,
    Mismatched,
    State,
)
from forze.application.integrations.keys import encode_part
from forze.errors import ConfigurationError
from forze_postgres.catalog import SHAPES_SQL, shapes
from forze_postgres.client import PostgresClient
from forze_postgres.document_config import Relation, checked_relation
from forze_postgres.errors import BACKEND
from forze_postgres.idempotency_table import Statements, problems

_PURGE_SECONDS = 60.0
_LOCKED_MS = 100
"""A locked record is being decided on right now: what to report of a lease that has lapsed."""
_FIRST_LOOK_SECONDS, _LONGEST_LOOK_SECONDS = 0.02, 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresIdempotencyConfig:
    """One set of idempotency records: ``table`` is ``(schema, table)``, made by
    ``idempotency_table_sql()``. ``tenant_aware``: each tenant's records are apart."""

    table: Relation
    tenant_aware: bool = False

    def __post_init__(self) -> None:
        owner = type(self).__name__
        object.__setattr__(self, "table", checked_relation(owner, "table", self.table))
        if not isinstance(self.tenant_aware, bool):
            raise ConfigurationError(f"{owner}: tenant_aware is True or False", name="tenant_aware")


class PostgresIdempotency(StoredIdempotency):
    """Operations that run once per key, their answers committed with their effects.
    Implements ``IdempotencyPort``."""

    def __init__(
        self,
        client: PostgresClient,
        spec: IdempotencySpec,
        config: PostgresIdempotencyConfig,
        resolver: Resolver,
    ) -> None:
        super().__init__(PostgresIdempotencyStore(client, spec, config, resolver), spec, resolver)


class PostgresIdempotencyStore:
    """Records in a table. Implements ``IdempotencyStore``."""

    def __init__(
        self,
        client: PostgresClient,
        spec: IdempotencySpec,
        config: PostgresIdempotencyConfig,
        resolver: Resolver,
    ) -> None:
        self._client = client
        self._config = config
        self._resolver = resolver
        self._resource = f"idempotency {spec.name!r}"
        self._sql = Statements(config.table)
        self._asking: dict[str, asyncio.Task[Answer]] = {}
        self._purged = 0.0

    def name(self, operation: str, key: str) -> str:
        """``[{tenant}/][{principal}/]{operation}/{key}``, encoded."""
        parts = record_parts(operation, key)
        if self._config.tenant_aware:
            parts = (encode_part(require_tenant(self._resource), "tenant"), *parts)
        return "/".join(parts)

    def place(self) -> None:
        """One place: a client has one database."""

    @asynccontextmanager
    async def hold(self) -> AsyncIterator[PostgresIdempotencyStore]:
        """Itself: a client has one database."""
        yield self

    def transaction(self) -> Transaction | None:
        """The transaction open in this task on the client."""
        return transaction_of(self._client.manager)

    async def claim(
        self, name: str, owner: str, payload_hash: str, lease: timedelta, retention: timedelta
    ) -> Answer:
        """One round trip. Once sent it goes on when the caller is cancelled; :meth:`release`
        waits for it, so that it frees what was claimed."""
        self._purge_sometimes()
        asking = self._resolver.spawn(
            self._claim(name, owner, payload_hash, lease, retention),
            name="forze-idempotency-claim",
            context=copy_context(),
        )
        self._asking[owner] = asking
        asking.add_done_callback(lambda _: self._asking.pop(owner, None))
        return await asyncio.shield(asking)

    async def _claim(self, name: str, owner: str, payload_hash: str, *times: timedelta) -> Answer:
        args = (name, payload_hash, owner, *times)
        while True:
            (row,) = await self._alone(self._sql.claim, *args, doing="claiming a key")
            if row["made"] is not None:
                return Granted(row["made"], "new")
            if row["state"] is not None:
                return _answer(row, name, owner, payload_hash)
            # Another made the row since the statement began: look at it.

    async def beat(
        self, name: str, owner: str, generation: int, lease: timedelta, retention: timedelta
    ) -> bool:
        """One round trip."""
        args = (name, owner, generation, lease, retention)
        return bool(await self._alone(self._sql.beat, *args, doing="keeping up a claim"))

    async def complete(
        self,
        name: str,
        owner: str,
        generation: int,
        snapshot: IdempotencySnapshot,
        retention: timedelta,
    ) -> bool:
        """One round trip, in the transaction open in this task where there is one."""
        answer = (snapshot.status_code, head_of(snapshot), snapshot.body)
        args = (name, owner, generation, retention, *answer)
        return bool(
            await self._client.rows(
                self._sql.complete, *args, doing="storing an answer", write=True
            )
        )

    async def release(self, name: str, owner: str, generation: int, retention: timedelta) -> bool:
        """One round trip."""
        if (asking := self._asking.get(owner)) is not None:
            await asyncio.wait({asking})
        args = (name, owner, generation, retention)
        return bool(await self._alone(self._sql.release, *args, doing="freeing a key"))

    @asynccontextmanager
    async def watch(self, name: str) -> AsyncIterator[_Look]:
        """Looks again after 20 ms, then less and less often, every half second at last."""
        yield _Look()

    async def purge(self) -> int:
        """Remove up to a thousand expired rows; how many there were."""
        return len(await self._alone(self._sql.purge, doing="removing expired records"))

    async def check(self) -> None:
        """Compare the table with what is needed; one query."""
        schema, relation = self._config.table
        with apart_from_transactions():
            rows = await self._client.rows(
                SHAPES_SQL, [schema], [relation], doing=f"checking the table of {self._resource}"
            )
        wrong = problems(self._config.table, shapes(rows).get(self._config.table))
        if wrong:
            raise ConfigurationError(
                f"{self._resource} does not fit the database: {'; '.join(wrong)}. Make the table "
                "with what idempotency_table_sql() returns",
                name=self._resource,
            )

    def _purge_sometimes(self) -> None:
        if time.monotonic() - self._purged > _PURGE_SECONDS:
            self._purged = time.monotonic()
            self._resolver.spawn(self.purge(), name="forze-idempotency-purge", wait=False)

    async def _alone(self, sql: str, *args: Any, doing: str) -> list[Any]:
        """A statement that commits by itself, whatever transaction is open in this task."""
        with apart_from_transactions():
            return await self._client.rows(sql, *args, doing=doing, write=True)


@contextmanager
def apart_from_transactions() -> Iterator[None]:
    """For the length of a ``with`` block, statements of this task run in no transaction."""
    token = OPEN.set(())
    try:
        yield
    finally:
        OPEN.reset(token)


class _Look:
    """Looks at a record from time to time. Implements ``Changes``."""

    def __init__(self) -> None:
        self._pause = _FIRST_LOOK_SECONDS

    async def wait(self, seconds: float) -> None:
        """For the next look, or until ``seconds`` have passed."""
        await asyncio.sleep(min(self._pause, seconds))
        self._pause = min(2 * self._pause, _LONGEST_LOOK_SECONDS)


def _answer(row: Any, name: str, owner: str, payload_hash: str) -> Answer:
    """What the row that was seen, and the generation that was taken, mean."""
    state, alive = row["state"], row["alive"]
    if row["taken"] is not None:
        how: How = "again"
        if not alive:
            how = "new"
        elif state == State.PENDING:
            how = "mine" if row["owner"] == owner else "takeover"
        return Granted(row["taken"], how)
    if alive and state != State.FREE and row["payload_hash"] != payload_hash:
        return Mismatched()
    if alive and state == State.COMPLETED:
        answer = row["status_code"], row["head"], row["body"]
        return Completed(snapshot_of(*answer, record=name, backend=BACKEND))
    left = row["lease_left_ms"] if alive and state == State.PENDING else 0
    return Busy(left if left > 0 else _LOCKED_MS)
