"""Transactions on a real server: shared by tasks, limited, and never believed without a COMMIT."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import asyncpg
import pytest
from tests.integration.postgres_documents import (
    TABLE,
    THING,
    Thing,
    ThingCreate,
    ThingUpdate,
    admin,
    connected,
    running,
    store,
)

from forze.errors import (
    BackendError,
    BackendTimeout,
    BackendUnavailable,
    ConfigurationError,
    ConflictError,
    ValidationError,
)
from forze_postgres import PostgresClient, PostgresClientDepKey, PostgresConfig


async def test_commit_and_rollback(postgres_dsn: str) -> None:
    await admin(postgres_dsn, TABLE)
    async with running(postgres_dsn) as ctx:
        query, command = ctx.doc_query(THING), ctx.doc_command(THING)
        async with ctx.transaction("things"):
            kept = await command.create(ThingCreate(name="kept"))
        with pytest.raises(ZeroDivisionError):
            async with ctx.transaction("things"):
                await command.update(kept.id, 1, ThingUpdate(price=7))
                await command.create(ThingCreate(name="gone"))
                assert await query.count() == 2
                raise ZeroDivisionError
        assert await query.count() == 1
        assert (await query.get(kept.id)).rev == 1


async def test_tasks_gathered_inside_share_the_connection(postgres_dsn: str) -> None:
    await admin(postgres_dsn, TABLE)
    async with running(postgres_dsn, min_size=1, max_size=1) as ctx:
        query, command = ctx.doc_query(THING), ctx.doc_command(THING)
        async with ctx.transaction("things"):
            made = await asyncio.gather(
                *(command.create(ThingCreate(name=str(n), price=n)) for n in range(20))
            )
            found = await asyncio.gather(*(query.get(each.id) for each in made))
            assert [each.price for each in found] == list(range(20))
        assert await query.count() == 20


async def _fetch(sql: str, connection: Any, limit: float) -> Any:
    return await connection.fetch(sql)


async def test_the_limits_are_set_with_begin(postgres_dsn: str) -> None:
    ask = "SELECT current_setting('{}')"
    for version, expected in ((None, "30s"), (16, "0")):
        client = PostgresClient()
        config = PostgresConfig(min_size=0, idle_in_transaction_timeout=2, transaction_timeout=30)
        await client.connect(postgres_dsn, config, _server_version=version)
        session = await client.manager.begin(isolation="serializable", read_only=True)
        settings = []
        for name in (
            "idle_in_transaction_session_timeout",
            "transaction_timeout",
            "transaction_isolation",
            "transaction_read_only",
        ):
            sql = ask.format(name)
            rows = await session.run(partial(_fetch, sql), "asking")
            settings.append(rows[0][0])
        await session.rollback()
        assert settings == ["2s", expected, "serializable", "on"]
        after = await client.rows(ask.format("transaction_timeout"), doing="asking")
        assert after[0][0] == "0", "it ends with the transaction"
        await client.close()


async def test_an_idle_transaction_is_ended_and_named(postgres_dsn: str) -> None:
    await admin(postgres_dsn, TABLE)
    for forced in (None, 16):
        client = PostgresClient()
        config = PostgresConfig(min_size=0, max_size=1, idle_in_transaction_timeout=0.03)
        await client.connect(postgres_dsn, config, _server_version=forced)
        for use in ("statement", "commit"):
            session = await client.manager.begin(isolation=None, read_only=False)
            await asyncio.sleep(0.09)
            with pytest.raises(BackendTimeout, match="idle_in_transaction_timeout") as caught:
                if use == "commit":
                    await session.commit()
                else:
                    await session.run(lambda c, limit: c.fetch("SELECT 1"), "asking")
            assert caught.value.outcome == "none"
            if use == "statement":
                await session.rollback()
        assert (await client.health()).ok
        await client.close()


async def test_a_long_transaction_is_ended_and_named(postgres_dsn: str) -> None:
    async with connected(postgres_dsn, transaction_timeout=0.06) as client:
        session = await client.manager.begin(isolation=None, read_only=False)
        with pytest.raises(BackendTimeout, match="transaction_timeout"):
            for _ in range(10):
                await session.run(lambda c, limit: c.fetch("SELECT pg_sleep(0.02)"), "sleeping")
        await session.rollback()
        pool = await client.pool()
        assert pool.size == 0


async def test_a_failed_transaction_is_not_taken_as_committed(postgres_dsn: str) -> None:
    await admin(postgres_dsn, TABLE)
    thing = Thing(name="x")
    async with running(postgres_dsn) as ctx:
        command = ctx.doc_command(THING)
        with pytest.raises(ConflictError, match="rolled back"):
            async with ctx.transaction("things"):
                await command.create(ThingCreate(id=thing.id, name="x"))
                with pytest.raises(ConflictError, match=str(thing.id)):
                    await command.create(ThingCreate(id=thing.id, name="x"))
                with pytest.raises(ConflictError, match="aborted"):
                    await ctx.doc_query(THING).count()
        assert await ctx.doc_query(THING).count() == 0


async def test_a_deferred_constraint_fails_the_commit(postgres_dsn: str) -> None:
    await admin(
        postgres_dsn,
        TABLE,
        "ALTER TABLE thing ADD CONSTRAINT one_name UNIQUE (name) DEFERRABLE INITIALLY DEFERRED",
    )
    async with running(postgres_dsn, max_size=2) as ctx:
        command = ctx.doc_command(THING)
        with pytest.raises(ConflictError, match="one_name"):
            async with ctx.transaction("things"):
                await command.create_many([ThingCreate(name="x"), ThingCreate(name="x")])
        with pytest.raises(ConflictError, match="one_name"):
            await command.create_many([ThingCreate(name="x"), ThingCreate(name="x")])
        assert await ctx.doc_query(THING).count() == 0


async def test_isolation_is_checked(postgres_dsn: str) -> None:
    async with connected(postgres_dsn) as client:
        nonsense: Any = "read uncommitted; DROP TABLE thing"
        with pytest.raises(ValidationError, match="serializable"):
            await client.manager.begin(isolation=nonsense, read_only=False)
        pool = await client.pool()
        assert pool.size == pool.idle


async def test_a_session_ends_once(postgres_dsn: str) -> None:
    async with connected(postgres_dsn) as client:
        pool = await client.pool()
        for end in ("commit", "rollback"):
            session = await client.manager.begin(isolation=None, read_only=False)
            await getattr(session, end)()
            for again in (session.commit(), session.rollback()):
                with pytest.raises(ConflictError, match="ended"):
                    await again
            with pytest.raises(ConflictError, match="ended"):
                await session.run(lambda c, limit: c.fetch("SELECT 1"), "asking")
            assert (pool.size, pool.idle) == (1, 1)


@pytest.mark.parametrize("turns", range(10))
async def test_cancelled_anywhere_the_connection_comes_back_once(
    postgres_dsn: str, turns: int
) -> None:
    await admin(postgres_dsn, TABLE)
    async with running(postgres_dsn, min_size=1, max_size=1) as ctx:
        command = ctx.doc_command(THING)

        async def work() -> None:
            async with ctx.transaction("things"):
                await command.create(ThingCreate(name="x"))
                await command.create(ThingCreate(name="y"))

        task = asyncio.create_task(work())
        for _ in range(turns):
            await asyncio.sleep(0.0004)
        task.cancel()
        ended = (await asyncio.gather(task, return_exceptions=True))[0]
        async with asyncio.timeout(5):
            count = await ctx.doc_query(THING).count()
        assert count in ((2,) if ended is None else (0, 2)), "all or nothing"
        pool = await ctx.provide(PostgresClientDepKey).pool()
        assert (pool.size, pool.idle, pool.waiting) == (1, 1, 0)


async def test_a_cancelled_statement_is_rolled_back(postgres_dsn: str) -> None:
    await admin(postgres_dsn, TABLE)
    thing = Thing(name="x")
    holder = await asyncpg.connect(postgres_dsn)
    async with running(postgres_dsn, min_size=1, max_size=2) as ctx:
        command = ctx.doc_command(THING)
        await command.create(ThingCreate(id=thing.id, name="x"))
        held = holder.transaction()
        await held.start()
        await holder.execute("SELECT * FROM thing FOR UPDATE")

        async def work() -> None:
            async with ctx.transaction("things"):
                await command.create(ThingCreate(name="y"))
                await command.update(thing.id, 1, ThingUpdate(price=5))

        task = asyncio.create_task(work())
        while not await holder.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await holder.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted") == 0
        await held.rollback()
        assert await ctx.doc_query(THING).count() == 1
        assert (await ctx.doc_query(THING).get(thing.id)).price == 0
    await holder.close()


async def test_the_domain_model_needs_a_transaction_and_locks(postgres_dsn: str) -> None:
    await admin(postgres_dsn, TABLE)
    thing = Thing(name="x")
    async with running(postgres_dsn) as ctx, connected(postgres_dsn) as other:
        things = store(ctx.provide(PostgresClientDepKey))
        await things.insert([thing])
        with pytest.raises(ConfigurationError, match="transaction"):
            await things.domain(thing.id)
        async with ctx.transaction("things"):
            assert await things.domain(thing.id) == thing
            skipped = "SELECT count(*) FROM (SELECT id FROM thing FOR UPDATE SKIP LOCKED) AS t"
            assert (await other.rows(skipped, doing="asking"))[0][0] == 0
        assert (await other.rows(skipped, doing="asking"))[0][0] == 1


async def test_a_terminated_backend(postgres_dsn: str) -> None:
    await admin(postgres_dsn, TABLE)
    async with connected(postgres_dsn) as client:
        session = await client.manager.begin(isolation=None, read_only=False)
        pid = (await session.run(lambda c, limit: c.fetch("SELECT pg_backend_pid()"), "x"))[0][0]
        await client.rows(f"SELECT pg_terminate_backend({pid}, 5000)", doing="ending")
        with pytest.raises(BackendError) as caught:
            await session.run(lambda c, limit: c.fetch("SELECT 1"), "asking")
        assert type(caught.value) is BackendUnavailable
        assert caught.value.outcome == "none"
        await session.rollback()
        assert (await client.health()).ok
