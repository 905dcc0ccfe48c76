"""When a write may commit, and when it is acknowledged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
from tests.faults.world import Replica, replica, script, state

from forze.errors import BackendUnavailable
from forze.testing.servers import PostgresServer, ValkeyServer
from forze_redis import cache as scripts


@pytest.mark.parametrize("explicit", [False, True], ids=["autocommit", "transaction"])
@pytest.mark.parametrize("held", ["request", "reply"])
async def test_no_commit_before_the_intent_is_answered(
    one: Replica, database: asyncpg.Connection[Any], explicit: bool, held: str
) -> None:
    """P1: the announcement is in place before the new value can be seen."""
    product = await one.create(price=10)
    intent = getattr(one.proxy, f"hold_{held}")(script(scripts.INTEND))

    async def reprice() -> None:
        async with one.ctx.transaction("products"):
            await one.reprice(product, 12)

    writer = asyncio.create_task(reprice() if explicit else _quietly(one.reprice(product, 12)))
    await intent.seen()
    await asyncio.sleep(0.05)
    assert not writer.done()
    assert await database.fetchval("SELECT price FROM products") == 10
    intent.release()
    await writer
    assert await database.fetchval("SELECT price FROM products") == 12


@pytest.mark.parametrize("held", ["request", "reply"])
async def test_a_write_is_acknowledged_after_done(one: Replica, held: str) -> None:
    """P1: nobody is told of a write before every cached copy of the old value is gone."""
    product = await one.create(price=10)
    done = getattr(one.proxy, f"hold_{held}")(script(scripts.DONE))
    writer = asyncio.create_task(one.reprice(product, 12))
    await done.seen()
    await asyncio.sleep(0.02)
    assert not writer.done()
    done.release()
    assert (await writer).price == 12


async def test_an_unknown_commit_keeps_its_intent(
    database: asyncpg.Connection[Any],
    postgres_server: PostgresServer,
    postgres_dsn: str,
    valkey: ValkeyServer,
    valkey_dsn: str,
) -> None:
    """P10: while the server may still be committing, readers see the intent and cache nothing."""
    await database.execute(
        """
        CREATE FUNCTION linger() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN PERFORM pg_sleep(0.6); RETURN NULL; END $$;
        CREATE CONSTRAINT TRIGGER linger AFTER UPDATE ON products
            DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION linger();
        """
    )
    async with wire_tap(postgres_server) as (port, cut):
        dsn = f"postgresql://postgres@127.0.0.1:{port}/{postgres_dsn_database(postgres_dsn)}"
        async with replica(dsn, valkey.port) as a, replica(postgres_dsn, valkey.port) as b:
            product = await a.create(price=10)

            async def reprice() -> None:
                async with a.ctx.transaction("products"):
                    await a.reprice(product, 12)

            writer = asyncio.create_task(reprice())
            while not await database.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE query ILIKE 'commit%'"
                " AND state = 'active'"
            ):
                await asyncio.sleep(0.01)
            cut()
            with pytest.raises(BackendUnavailable) as lost:
                await writer
            assert lost.value.outcome == "unknown"
            assert await b.price(product) == 10
            raw = state(valkey, product)
            assert raw is not None
            assert raw.startswith(b"I;"), "the intent stands while the backend may run"
            async with asyncio.timeout(10):
                while state(valkey, product) is not None:
                    await asyncio.sleep(0.02)
            assert await database.fetchval("SELECT price FROM products") == 12
            assert await b.price(product) == 12


async def _quietly(work: Awaitable[object]) -> None:
    await work


def postgres_dsn_database(dsn: str) -> str:
    """The database a DSN names."""
    return dsn.partition("?")[0].rpartition("/")[2]


@asynccontextmanager
async def wire_tap(server: PostgresServer) -> AsyncIterator[tuple[int, Any]]:
    """A TCP port that leads to the server's socket, and a way to cut what goes through it."""
    writers: list[asyncio.StreamWriter] = []
    pumps: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
        except OSError:
            pass
        finally:
            writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        (socket,) = server.directory.glob(".s.PGSQL.*[0-9]")
        far_reader, far_writer = await asyncio.open_unix_connection(str(socket))
        writers.extend((writer, far_writer))
        for way in ((reader, far_writer), (far_reader, writer)):
            pumps.add(asyncio.create_task(pump(*way)))

    def cut() -> None:
        for writer in writers:
            writer.transport.abort()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield listener.sockets[0].getsockname()[1], cut
    finally:
        listener.close()
        cut()
        await asyncio.gather(*pumps, return_exceptions=True)
