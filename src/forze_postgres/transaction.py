"""Transactions on a pooled connection: BEGIN, its limits, statements in turn, and the end.

BEGIN and its limits are one message. The statements of a session run one after the other, so
that tasks gathered inside a transaction may share it. The connection goes back exactly once,
whatever is cancelled, and a COMMIT is believed only when the server answered COMMIT.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

import asyncpg

from forze.application.contracts.transaction import IsolationLevel
from forze.errors import (
    BackendError,
    BackendTimeout,
    BackendUnavailable,
    ConflictError,
    ForzeError,
    ValidationError,
)
from forze_postgres.config import PostgresConfig, seconds
from forze_postgres.connection import Connection
from forze_postgres.deadlines import ANSWER_SECONDS, answer_limit, loop_deadline
from forze_postgres.errors import BACKEND, RAISED, is_lost, mapped
from forze_postgres.pool import Pool

if TYPE_CHECKING:
    from forze_postgres.client import PostgresClient

T = TypeVar("T")

_ISOLATION: dict[IsolationLevel | None, str] = {
    None: "",
    "read committed": " ISOLATION LEVEL READ COMMITTED",
    "repeatable read": " ISOLATION LEVEL REPEATABLE READ",
    "serializable": " ISOLATION LEVEL SERIALIZABLE",
}
_TRANSACTION_TIMEOUT_SINCE = 17
_ROLLBACK_SECONDS = 2.0
_CLOCK_SLACK_SECONDS = 0.1


class PostgresTransactionManager:
    """Begins transactions of one client. Implements ``TransactionManager``."""

    def __init__(self, client: PostgresClient) -> None:
        self._client = client
        self._config = PostgresConfig()
        self._server_version: int | None = None

    def configure(self, config: PostgresConfig, server_version: int | None) -> None:
        """Take over the limits; ``server_version`` replaces what the server says of itself."""
        self._config, self._server_version = config, server_version

    async def begin(self, *, isolation: IsolationLevel | None, read_only: bool) -> PostgresSession:
        """Open a transaction on a connection of its own; one round trip."""
        if isolation not in _ISOLATION:
            raise ValidationError(
                f"isolation is one of {', '.join(each for each in _ISOLATION if each)}, "
                f"not {isolation!r}",
                field="isolation",
            )
        pool = await self._client.pool()
        connection = await pool.acquire(loop_deadline(pool.loop))
        version = self._server_version or connection.get_server_version().major
        doing = "beginning a transaction"
        try:
            await connection.execute(
                begin_sql(self._config, version, isolation, read_only),
                timeout=answer_limit(self._config, doing),
            )
        except BaseException as error:
            pool.recover(connection)
            if isinstance(error, RAISED):
                raise mapped(error, doing=doing) from error
            raise
        limited = version >= _TRANSACTION_TIMEOUT_SINCE
        return PostgresSession(self._client, pool, connection, self._config, limited=limited)


def begin_sql(
    config: PostgresConfig, version: int, isolation: IsolationLevel | None, read_only: bool
) -> str:
    """BEGIN with everything that holds for the transaction."""
    idle = config.milliseconds("idle_in_transaction_timeout")
    sql = (
        f"BEGIN{_ISOLATION[isolation]}{' READ ONLY' if read_only else ''}; "
        f"SET LOCAL idle_in_transaction_session_timeout = {idle}"
    )
    if version >= _TRANSACTION_TIMEOUT_SINCE:
        sql += f"; SET LOCAL transaction_timeout = {config.milliseconds('transaction_timeout')}"
    return sql


class PostgresSession:
    """One open transaction. Implements ``TransactionSession``."""

    def __init__(
        self,
        client: PostgresClient,
        pool: Pool,
        connection: Connection,
        config: PostgresConfig,
        *,
        limited: bool,
    ) -> None:
        self._client = client
        self._pool = pool
        self._connection = connection
        self._config = config
        self._limited = limited
        self._turn = asyncio.Lock()
        self._ended = False
        self._pid = connection.get_server_pid()
        self._began = self._answered = pool.loop.time()

    async def run(self, work: Callable[[Connection, float], Awaitable[T]], doing: str) -> T:
        """Run a statement when those before it are done."""
        if asyncio.get_running_loop() is not self._pool.loop:
            raise ConflictError(f"{doing}: the transaction belongs to another event loop")
        async with self._turn:
            if self._ended:
                raise ConflictError(f"{doing}: the transaction has ended")
            try:
                result = await work(self._connection, answer_limit(self._config, doing))
            except RAISED as error:
                raise self._failure(error, doing) from error
            self._answered = self._pool.loop.time()
            return result

    async def commit(self) -> None:
        """Commit; one round trip.

        Raises ``ConflictError`` when the server rolled back instead, and
        ``BackendUnavailable(outcome="unknown")`` when its answer was lost.
        """
        async with self._turn:
            self._end_once()
            if self._connection.is_closed():
                error = self._gone("committing")
                self._pool.discard(self._connection)
                raise error
            await self._commit()

    async def _commit(self) -> None:
        limit = seconds(self._config.statement_timeout) + ANSWER_SECONDS
        try:
            tag = await self._connection.execute("COMMIT", timeout=limit)
        except RAISED as error:
            if is_lost(error):
                self._pool.retire(self._connection)
                if isinstance(error, TimeoutError):
                    error = ConnectionAbortedError("COMMIT was not answered in time")
                raise self._client.unknown(error, self._pid, "committing") from error
            failure = self._failure(error, "committing")
            self._pool.recover(self._connection)
            raise failure from error
        except BaseException:
            self._pool.retire(self._connection)
            raise
        self._pool.release(self._connection)
        if tag != "COMMIT":
            raise ConflictError(
                "the transaction was rolled back instead of committed, because a statement in it "
                "had failed; let that error leave the transaction block"
            )

    async def rollback(self) -> None:
        """Roll back; one round trip. A connection that does not answer is closed instead."""
        try:
            async with asyncio.timeout(_ROLLBACK_SECONDS):
                await self._turn.acquire()
        except TimeoutError:
            self._ended = True
            self._pool.discard(self._connection)
            return
        except BaseException:
            self._ended = True
            self._pool.discard(self._connection)
            raise
        try:
            self._end_once()
            if self._connection.is_closed():
                self._pool.discard(self._connection)
                return
            await self._connection.execute("ROLLBACK", timeout=_ROLLBACK_SECONDS)
        except RAISED:
            self._pool.discard(self._connection)
        except ConflictError:
            raise
        except BaseException:
            self._pool.recover(self._connection)
            raise
        else:
            self._pool.release(self._connection)
        finally:
            self._turn.release()

    def _end_once(self) -> None:
        if self._ended:
            raise ConflictError("the transaction has ended already")
        self._ended = True

    def _failure(self, error: BaseException, doing: str) -> ForzeError:
        if self._connection.is_closed() and not isinstance(error, asyncpg.PostgresError):
            return self._gone(doing)
        if isinstance(error, asyncpg.ConnectionDoesNotExistError):
            return self._gone(doing)
        if isinstance(error, asyncpg.ReadOnlySQLTransactionError):
            return ConflictError(
                f"{doing}: the transaction is read-only; open it without read_only=True"
            )
        return mapped(error, doing=doing)

    def _gone(self, doing: str) -> BackendError:
        """Why the server closed the connection of a transaction, told by the time it took."""
        now = self._pool.loop.time() + _CLOCK_SLACK_SECONDS
        idle, whole = self._config.idle_in_transaction_timeout, self._config.transaction_timeout
        reason = None
        if now - self._answered >= seconds(idle):
            reason = (
                f"it was idle for longer than idle_in_transaction_timeout ({seconds(idle):g} s)"
            )
        elif self._limited and now - self._began >= seconds(whole):
            reason = f"it took longer than transaction_timeout ({seconds(whole):g} s)"
        if reason is None:
            return BackendUnavailable(
                f"{doing}: the connection of the transaction was lost; it was rolled back",
                backend=BACKEND,
            )
        return BackendTimeout(
            f"{doing}: PostgreSQL ended the transaction, because {reason}; do slow work outside "
            "transactions, or raise the limit in PostgresConfig",
            backend=BACKEND,
        )
