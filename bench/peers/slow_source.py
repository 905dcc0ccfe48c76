"""A document source in PostgreSQL that takes its time and counts who asks.

The view ``cold_products`` shows the products; each row that is read from it waits for as long
as :func:`prepare` said and leaves a line in ``cold_loads`` with the session's
``application_name``, so that PostgreSQL itself says how often a process loaded. Needs asyncpg.
"""

from __future__ import annotations

import asyncpg

VIEW = "cold_products"

_MAKE = """
BEGIN;
SELECT pg_advisory_xact_lock(20260);
CREATE TABLE IF NOT EXISTS cold_source (ms double precision);
CREATE UNLOGGED TABLE IF NOT EXISTS cold_loads (who text, id uuid);
CREATE OR REPLACE FUNCTION cold_load(pk uuid, description text) RETURNS text
LANGUAGE plpgsql VOLATILE AS $$ BEGIN
    INSERT INTO cold_loads VALUES (current_setting('application_name'), pk);
    PERFORM pg_sleep(ms / 1000) FROM cold_source;
    RETURN description;
END $$;
CREATE OR REPLACE VIEW cold_products AS
    SELECT id, rev, created_at, last_update_at, name, price,
           cold_load(id, description) AS description
    FROM products;
COMMIT;
"""


async def make(connection: asyncpg.Connection) -> None:
    """Make the view, unless another process has."""
    await connection.execute(_MAKE)


async def prepare(connection: asyncpg.Connection, source_ms: float) -> None:
    """Loads take ``source_ms`` from now on, for everyone."""
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock(20260)")
        if source_ms != await connection.fetchval("SELECT ms FROM cold_source"):
            await connection.execute("DELETE FROM cold_source")
            await connection.execute("INSERT INTO cold_source VALUES ($1)", source_ms)


async def loads(connection: asyncpg.Connection, who: str, pk: object) -> int:
    """How often sessions of the application ``who`` loaded the document."""
    found = await connection.fetchval(
        "SELECT count(*) FROM cold_loads WHERE who = $1 AND id = $2", who, pk
    )
    return int(found)
