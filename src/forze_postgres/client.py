"""The PostgreSQL client: what applications hold, and the one way statements are run.

A statement runs on the connection of the transaction the task is in, or by itself on one of
the pool's. Limits, errors, abandoned connections and lost answers are dealt with here, for
both. Each event loop has a pool of its own, and a forked child makes new ones.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import asyncpg

from forze.application.contracts.configs import configured
from forze.application.contracts.deps import DepKey
from forze.application.contracts.transaction import transaction_of
from forze.errors import BackendError, ConfigurationError, ForzeError
from forze_postgres.config import PostgresConfig, seconds
from forze_postgres.connection import Connection, check_version, connect
from forze_postgres.deadlines import answer_limit, loop_deadline
from forze_postgres.dsn import Dsn, parse_dsn
from forze_postgres.errors import RAISED, is_lost, mapped, with_outcome_unknown
from forze_postgres.pool import Pool
from forze_postgres.transaction import PostgresSession, PostgresTransactionManager

_forks: list[None] = []
_before_fork: list[object] = []
"""Pools of the parent, kept so that a child neither closes nor collects them."""


def _forked() -> None:
    _forks.append(None)


os.register_at_fork(after_in_child=_forked)


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresHealth:
    """What :meth:`PostgresClient.health` saw."""

    ok: bool
    latency: timedelta | None = None
    server_version: str | None = None
    connections: int = 0
    idle: int = 0
    waiting: int = 0
    error: str | None = None


class PostgresClient:
    """A pool of connections to one database, and its transactions.

    Made without an address, so that it can be wired before it is known; :meth:`connect` (or
    the lifecycle step) gives it one.
    """

    def __init__(self) -> None:
        self._dsn: Dsn | None = None
        self._config = PostgresConfig()
        self._pools: dict[asyncio.AbstractEventLoop, Pool] = {}
        self._fork = len(_forks)
        self.manager = PostgresTransactionManager(self)

    # -- life ----------------------------------------------------------------

    async def connect(
        self,
        dsn: str,
        config: PostgresConfig | Mapping[str, Any] | None = None,
        *,
        _server_version: int | None = None,
    ) -> None:
        """Open ``config.min_size`` connections.

        Raises ``ConfigurationError`` for a DSN, login, database or server version that cannot
        be used, ``BackendUnavailable`` naming host and port if no server answers.
        ``_server_version`` makes the client take the server for another version.
        """
        self._refuse_twice()
        config = configured(PostgresConfig, {} if config is None else config, "PostgresConfig")
        parsed = parse_dsn(dsn)
        pool = Pool(parsed, config)
        try:
            await pool.fill()
            if _server_version is not None:
                check_version(_server_version, parsed)
            self._refuse_twice()  # by another task, meanwhile
        except BaseException:
            await pool.close()
            raise
        self._dsn, self._config = parsed, config
        self.manager.configure(config, _server_version)
        self._current_pools()[pool.loop] = pool

    def _refuse_twice(self) -> None:
        if self._dsn is not None:
            raise ConfigurationError(
                "the PostgreSQL client is connected already; close() it first, or use another one"
            )

    async def close(self) -> None:
        """Close every connection; the client can be connected again. Bounded in time."""
        self._dsn = None
        loop = asyncio.get_running_loop()
        pools, self._pools = self._current_pools(), {}
        for owner, pool in pools.items():
            if owner is loop:
                await pool.close()
            else:
                _abandon(pool)

    async def health(self) -> PostgresHealth:
        """Ask the server; never raises, and takes at most ``connect_timeout`` or so."""
        began = time.perf_counter()
        try:
            async with asyncio.timeout(seconds(self._config.connect_timeout)):
                pool = await self.pool()
                connection = await pool.acquire()
                try:
                    await connection.execute("SELECT 1")
                    version = str(connection.get_settings().server_version)
                except BaseException:
                    pool.recover(connection)
                    raise
                pool.release(connection)
        except (*RAISED, ForzeError) as error:
            text = str(error) or f"no answer within {seconds(self._config.connect_timeout):g} s"
            if self._dsn is not None:
                text = self._dsn.without_password(text)
            return PostgresHealth(ok=False, error=text)
        return PostgresHealth(
            ok=True,
            latency=timedelta(seconds=time.perf_counter() - began),
            server_version=version,
            connections=pool.size,
            idle=pool.idle,
            waiting=pool.waiting,
        )

    async def pool(self) -> Pool:
        """The pool of the running event loop, opened if this is its first use there."""
        pool = self._current_pools().get(asyncio.get_running_loop())
        if pool is not None:
            return pool
        if self._dsn is None:
            raise ConfigurationError(
                "the PostgreSQL client is not connected; add postgres_lifecycle_step(dsn=...) to "
                "the lifecycle, or await client.connect(dsn)"
            )
        for loop in [each for each in self._pools if each.is_closed()]:
            _abandon(self._pools.pop(loop))
        pool = Pool(self._dsn, self._config)
        self._pools[pool.loop] = pool
        return pool

    def _current_pools(self) -> dict[asyncio.AbstractEventLoop, Pool]:
        if self._fork != len(_forks):
            _before_fork.append(self._pools)
            self._pools, self._fork = {}, len(_forks)
        return self._pools

    # -- statements ----------------------------------------------------------

    async def rows(
        self, sql: str, *arguments: Any, doing: str, write: bool = False
    ) -> list[asyncpg.Record]:
        """Run one statement and return its rows; one round trip once it is prepared.

        ``doing`` says what it does, for errors. ``write``: the statement may change something,
        so that a lost answer leaves the outcome open.
        """
        return await self._run(
            lambda connection, limit: connection.fetch(sql, *arguments, timeout=limit),
            doing,
            write,
        )

    async def rows_of_each(
        self, sql: str, arguments: Sequence[Sequence[Any]], *, doing: str
    ) -> list[asyncpg.Record]:
        """Run one writing statement for each of ``arguments``, all or none, in one round trip."""
        return await self._run(
            lambda connection, limit: connection.fetchmany(sql, arguments, timeout=limit),
            doing,
            True,
        )

    async def _run(
        self,
        work: Callable[[Connection, float], Awaitable[list[asyncpg.Record]]],
        doing: str,
        write: bool,
    ) -> list[asyncpg.Record]:
        transaction = transaction_of(self.manager)
        if transaction is not None:
            session = transaction.session
            assert isinstance(session, PostgresSession)
            return await session.run(work, doing)
        pool = await self.pool()
        connection = await pool.acquire(loop_deadline(pool.loop))
        pid = connection.get_server_pid() if write else 0
        try:
            result = await work(connection, answer_limit(self._config, doing))
        except BaseException as error:
            if write and is_lost(error):
                pool.retire(connection)
                raise self.unknown(error, pid, doing) from error
            if isinstance(error, asyncpg.PostgresError) and not is_lost(error):
                pool.release(connection)  # it has answered, only not with rows
            else:
                pool.recover(connection)
            if isinstance(error, RAISED):
                raise mapped(error, doing=doing) from error
            raise
        pool.release(connection)
        return result

    def unknown(self, error: BaseException, pid: int, doing: str) -> BackendError:
        """The error of a write whose answer was lost; it can ask whether backend ``pid`` lives."""
        lost = with_outcome_unknown(error, doing=doing)
        dsn, config = self._dsn, self._config

        async def still_running() -> bool:
            return dsn is None or await _backend_lives(dsn, config, pid)

        lost.still_running = still_running
        return lost


async def _backend_lives(dsn: Dsn, config: PostgresConfig, pid: int) -> bool:
    """Whether the server still has a backend ``pid``; True whenever that cannot be told."""
    if dsn.several:  # a new connection may lead to another server
        return True
    try:
        connection = await connect(dsn, config)
    except ForzeError:
        return True
    try:
        async with asyncio.timeout(seconds(config.connect_timeout)):
            found = await connection.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE pid = $1", pid
            )
        return bool(found)
    except RAISED:
        return True
    finally:
        connection.terminate()


def _abandon(pool: Pool) -> None:
    """Drop a pool of another loop, on that loop if it still runs."""
    if pool.loop.is_closed():
        pool.abandon()
        return
    with suppress(RuntimeError):
        pool.loop.call_soon_threadsafe(pool.abandon)


PostgresClientDepKey: DepKey[PostgresClient] = DepKey("postgres_client")
