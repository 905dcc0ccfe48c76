"""Opening a connection: its settings, the server's version, and why it was refused."""

from __future__ import annotations

import asyncio
from typing import TypeAlias

import asyncpg

from forze.errors import BackendUnavailable, ConfigurationError, ForzeError
from forze_postgres.config import PostgresConfig, seconds
from forze_postgres.dsn import Dsn
from forze_postgres.errors import BACKEND, RAISED, mapped

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

OLDEST_SERVER = 14

OURS_TO_MEND = frozenset({"0A", "22", "42"})
"""Classes of SQLSTATE with which a server refuses what a DSN asks for: settings that do not exist
or are out of range, a database that its user may not enter."""


async def connect(dsn: Dsn, config: PostgresConfig, deadline: float | None = None) -> Connection:
    """One new connection, its settings made, its server's version checked."""
    limit = dsn.connect_seconds or seconds(config.connect_timeout)
    if deadline is not None:
        limit = max(0.001, min(limit, deadline - asyncio.get_running_loop().time()))
    settings = {
        "application_name": config.application_name,
        **dsn.settings,
        "statement_timeout": config.milliseconds("statement_timeout"),
    }
    try:
        async with asyncio.timeout(limit):
            connection: Connection = await asyncpg.connect(
                **dsn.arguments,
                timeout=limit,
                server_settings=settings,
                statement_cache_size=config.statement_cache_size,
                max_cached_statement_lifetime=0,
            )
    except (*RAISED, ValueError) as error:
        raise _refused(error, dsn, limit) from None
    try:
        check_version(connection.get_server_version().major, dsn)
    except ConfigurationError:
        connection.terminate()
        raise
    return connection


def check_version(major: int, dsn: Dsn) -> None:
    """Raises ``ConfigurationError`` for a server that is too old."""
    if major < OLDEST_SERVER:
        raise ConfigurationError(
            f"{dsn.servers} is PostgreSQL {major}; {OLDEST_SERVER} or later is needed",
            name="dsn",
        )


def _refused(error: BaseException, dsn: Dsn, limit: float) -> ForzeError:
    """Why a connection could not be opened, without the password; no cause is attached to it."""
    said = dsn.without_password(str(error))
    match error:
        case asyncpg.InvalidAuthorizationSpecificationError():
            return ConfigurationError(
                f"PostgreSQL at {dsn.servers} refused the login: {said}; "
                "see user and password in the DSN, and pg_hba.conf",
                name="dsn",
            )
        case asyncpg.InvalidCatalogNameError():
            return ConfigurationError(
                f"PostgreSQL at {dsn.servers} has no such database: {said}", name="dsn"
            )
        case asyncpg.PostgresError() if (error.sqlstate or "")[:2] in OURS_TO_MEND:
            return ConfigurationError(
                f"PostgreSQL at {dsn.servers} refused the connection: {said}; see the DSN, and the "
                "rights of its user",
                name="dsn",
            )
        case asyncpg.PostgresError():  # whatever kept it, it is away; nothing was asked of it yet
            return BackendUnavailable(
                f"PostgreSQL at {dsn.servers} refused the connection: {said}", backend=BACKEND
            )
        case asyncpg.TargetServerAttributeNotMatched():
            return mapped(error, doing=f"connecting to PostgreSQL at {dsn.servers}")
        case TimeoutError():
            return BackendUnavailable(
                f"PostgreSQL at {dsn.servers} did not answer within {limit:g} s "
                "(connect_timeout); see that it is running and can be reached",
                backend=BACKEND,
            )
        case FileNotFoundError() | ConnectionError() | OSError():
            return BackendUnavailable(
                f"PostgreSQL at {dsn.servers} cannot be reached: {said}; see that it is running, "
                "and host and port in the DSN",
                backend=BACKEND,
            )
    return ConfigurationError(
        f"the PostgreSQL DSN {dsn.shown!r} cannot be used: {said}", name="dsn"
    )
