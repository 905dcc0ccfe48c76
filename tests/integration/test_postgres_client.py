"""The client on a real server: addresses, refusals, the pool, limits, loops and forks."""

from __future__ import annotations

import asyncio
import os
import pickle
import threading
from datetime import timedelta
from typing import Any
from urllib.parse import quote

import pytest
from tests.integration.postgres_documents import (
    ENDLESS,
    TABLE,
    Thing,
    admin,
    connected,
    full,
    running,
    store,
)

from forze.application.contracts.tenancy import bind_deadline
from forze.errors import BackendTimeout, BackendUnavailable, ConfigurationError
from forze.testing.servers import PostgresServer
from forze_postgres import PostgresClient, PostgresConfig


async def _name(client: PostgresClient) -> str:
    rows = await client.rows("SELECT current_database()::text AS name", doing="asking")
    return str(rows[0]["name"])


async def test_every_form_of_address(postgres_server: PostgresServer, postgres_dsn: str) -> None:
    place = str(postgres_server.directory)
    name = postgres_dsn.partition("?")[0].rpartition("/")[2]
    for dsn in (
        postgres_dsn,
        f"postgres://postgres@{quote(place, safe='')}/{name}",
        f"postgresql:///?host={quote(place)}&dbname={name}&user=postgres&connect_timeout=5",
        f"host={place} dbname={name} user='postgres' application_name='it''s'".replace("''", r"\'"),
        f"host=/nowhere,{place} dbname={name} user=postgres options='-c work_mem=5MB'",
    ):
        async with connected(dsn) as client:
            assert await _name(client) == name
    async with connected(dsn) as client:
        assert (await client.rows("SHOW work_mem", doing="asking"))[0][0] == "5MB"


async def test_the_session_has_its_limits(postgres_dsn: str) -> None:
    async with connected(postgres_dsn, statement_timeout=2.5, application_name="shop") as client:
        sql = "SELECT current_setting('statement_timeout'), current_setting('application_name')"
        assert tuple((await client.rows(sql, doing="asking"))[0]) == ("2500ms", "shop")


async def test_an_unknown_database_is_said(postgres_server: PostgresServer) -> None:
    client = PostgresClient()
    with pytest.raises(ConfigurationError, match=r'database "nowhere" does not exist'):
        await client.connect(postgres_server.database_dsn("nowhere"))
    with pytest.raises(ConfigurationError, match='role "nobody_here"'):
        await client.connect(f"host={postgres_server.directory} user=nobody_here dbname=postgres")


@pytest.mark.parametrize(
    ("makes", "kind", "says"),
    [
        ("ALTER DATABASE {} ALLOW_CONNECTIONS false", BackendUnavailable, "not currently accept"),
        ("ALTER DATABASE {} CONNECTION LIMIT 0", BackendUnavailable, "too many connections"),
        ("REVOKE CONNECT ON DATABASE {} FROM public", ConfigurationError, "permission denied"),
        ("ALTER ROLE visitor NOLOGIN", ConfigurationError, "not permitted to log in"),
    ],
)  # fmt: skip
async def test_a_server_that_refuses_is_away_unless_the_dsn_is_wrong(
    postgres_server: PostgresServer, postgres_dsn: str, makes: str, kind: Any, says: str
) -> None:
    name = postgres_dsn.partition("?")[0].rpartition("/")[2]
    dsn = f"host={postgres_server.directory} user=visitor dbname={name}"
    await admin(postgres_server.dsn, "CREATE ROLE visitor LOGIN")
    try:
        await admin(postgres_server.dsn, makes.format(f'"{name}"'))
        with pytest.raises(kind, match=says):
            await PostgresClient().connect(dsn)
    finally:
        await admin(postgres_server.dsn, f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
        await admin(postgres_server.dsn, "DROP ROLE visitor")


async def test_a_setting_that_does_not_exist_is_the_dsn_s(postgres_dsn: str) -> None:
    for setting in ("no_such_setting", "work_mem"):
        with pytest.raises(ConfigurationError, match=setting):
            await PostgresClient().connect(f"{postgres_dsn}&options={quote(f'-c {setting}=much')}")


async def test_a_wrong_password_is_said_and_not_shown() -> None:
    with PostgresServer() as server:
        await admin(server.dsn, "CREATE ROLE clerk LOGIN PASSWORD 'right one'")
        hba = server.directory / "data" / "pg_hba.conf"
        hba.write_text("local all clerk scram-sha-256\nlocal all all trust\n")
        await admin(server.dsn, "SELECT pg_reload_conf()")
        dsn = "postgresql://clerk:{}@/postgres?host=" + str(server.directory)
        with pytest.raises(ConfigurationError, match="password") as caught:
            await PostgresClient().connect(dsn.format("hunter2"))
        assert "hunter2" not in str(caught.value)
        assert "hunter2" not in repr(caught.value.__cause__)
        async with connected(dsn.format("right%20one")) as client:
            assert await _name(client) == "postgres"


async def test_no_server_there(tmp_path: Any) -> None:
    with pytest.raises(BackendUnavailable, match=r"127\.0\.0\.1:1\b"):
        await PostgresClient().connect("postgresql://u:hunter2@127.0.0.1:1/db?sslmode=disable")
    with pytest.raises(BackendUnavailable, match=str(tmp_path)):
        await PostgresClient().connect(f"host={tmp_path} user=u dbname=d")


async def test_a_server_that_does_not_answer() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    listener = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    client = PostgresClient()
    config = PostgresConfig(connect_timeout=0.05, min_size=0)
    dsn = f"postgresql://u:hunter2@127.0.0.1:{port}/db?sslmode=disable"
    with pytest.raises(BackendUnavailable, match=f"{port} did not answer within 0.05 s"):
        await client.connect(dsn, config)
    listener.close()
    await listener.wait_closed()


async def test_an_old_server_is_refused_with_its_version(postgres_dsn: str) -> None:
    client = PostgresClient()
    with pytest.raises(ConfigurationError, match="PostgreSQL 13; 14 or later"):
        await client.connect(postgres_dsn, _server_version=13)
    await client.connect(postgres_dsn, PostgresConfig(min_size=0), _server_version=14)
    await client.close()


async def test_use_before_connect_and_after_close(postgres_dsn: str) -> None:
    client = PostgresClient()
    assert not (await client.health()).ok
    with pytest.raises(ConfigurationError, match="not connected"):
        await _name(client)
    await client.connect(postgres_dsn)
    with pytest.raises(ConfigurationError, match="already"):
        await client.connect(postgres_dsn)
    await client.close()
    with pytest.raises(ConfigurationError, match="not connected"):
        await _name(client)
    await client.connect(postgres_dsn)
    assert (await client.health()).ok
    await client.close()


async def test_health_says_what_it_saw(postgres_dsn: str) -> None:
    async with connected(postgres_dsn, min_size=2, max_size=3) as client:
        health = await client.health()
        assert health.ok
        assert health.latency is not None
        assert timedelta(0) < health.latency < timedelta(seconds=5)
        assert (health.connections, health.idle, health.waiting) == (2, 2, 0)
        assert int(str(health.server_version).split(".")[0]) >= 14


async def test_five_hundred_readers_of_five_connections(postgres_dsn: str) -> None:
    await admin(postgres_dsn, TABLE)
    thing = Thing(name="x")
    async with connected(postgres_dsn, max_size=5) as client:
        things = store(client)
        await things.insert([thing])
        found = await asyncio.gather(*(things.fetch([thing.id]) for _ in range(500)))
        assert all(each[thing.id].name == "x" for each in found)
        health = await client.health()
        assert (health.connections, health.idle) == (5, 5)


async def test_a_full_pool_waits_its_turn_and_not_for_ever(postgres_dsn: str) -> None:
    async with connected(postgres_dsn, max_size=1, acquire_timeout=0.05) as client:
        pool = await client.pool()
        held = await pool.acquire()
        with pytest.raises(BackendTimeout, match="acquire_timeout"):
            await _name(client)
        with bind_deadline(timedelta(milliseconds=10)), pytest.raises(BackendTimeout) as caught:
            await _name(client)
        assert "deadline of the call" in str(caught.value)
        waiting = asyncio.create_task(_name(client))
        while not pool.waiting:
            await asyncio.sleep(0)
        cancelled = asyncio.create_task(_name(client))
        while pool.waiting < 2:
            await asyncio.sleep(0)
        cancelled.cancel()
        pool.release(held)
        assert await waiting
        assert await _name(client)
        assert (pool.size, pool.idle, pool.waiting) == (1, 1, 0)


async def test_a_connection_handed_to_a_cancelled_caller_is_passed_on(postgres_dsn: str) -> None:
    async with connected(postgres_dsn, max_size=1) as client:
        pool = await client.pool()
        for give_back in (pool.release, pool.discard):
            held = await pool.acquire()
            first = asyncio.create_task(pool.acquire())
            second = asyncio.create_task(_name(client))
            while pool.waiting < 2:
                await asyncio.sleep(0)
            give_back(held)
            first.cancel()  # in the same turn: it was handed the connection already
            with pytest.raises(asyncio.CancelledError):
                await first
            assert await asyncio.wait_for(second, 5)
        assert (pool.size, pool.idle) == (1, 1)


@pytest.mark.parametrize("turns", range(12))
async def test_a_cancelled_statement_leaves_the_pool_whole(postgres_dsn: str, turns: int) -> None:
    async with connected(postgres_dsn, max_size=1) as client:
        pool = await client.pool()
        task = asyncio.create_task(client.rows(ENDLESS, doing="sleeping", write=True))
        for _ in range(turns):
            await asyncio.sleep(0.001 if turns > 6 else 0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(2.5):
            assert await _name(client)
        assert (pool.size, pool.idle) == (1, 1)


async def test_a_slow_statement_names_its_limit(postgres_dsn: str) -> None:
    async with connected(postgres_dsn, statement_timeout=0.05) as client:
        with pytest.raises(BackendTimeout, match="statement_timeout") as caught:
            await client.rows(ENDLESS, doing="sleeping", write=True)
        assert caught.value.outcome == "none"
        with bind_deadline(timedelta(milliseconds=20)), pytest.raises(BackendTimeout):
            await client.rows("SELECT pg_sleep(0.04)", doing="sleeping")
        assert await _name(client)


async def test_a_deadline_that_has_passed_sends_nothing(postgres_dsn: str) -> None:
    async with connected(postgres_dsn) as client:
        await _name(client)
        with bind_deadline(timedelta(0)), pytest.raises(BackendTimeout) as caught:
            await client.rows("CREATE TABLE never ()", doing="creating", write=True)
        assert caught.value.outcome == "none"
        rows = await client.rows("SELECT to_regclass('never')::text", doing="asking")
        assert rows[0][0] is None


def test_another_event_loop_gets_a_pool_of_its_own(postgres_server: PostgresServer) -> None:
    client = PostgresClient()
    pids: list[int] = []

    async def ask() -> None:
        pids.append((await client.rows("SELECT pg_backend_pid()", doing="asking"))[0][0])

    async def first() -> None:
        await client.connect(postgres_server.dsn, PostgresConfig(min_size=1, max_size=2))
        await ask()
        elsewhere = threading.Thread(target=asyncio.run, args=(second(),))
        elsewhere.start()
        while elsewhere.is_alive():
            await asyncio.sleep(0.005)
        await ask()
        await client.close()

    async def second() -> None:
        await ask()
        pool = await client.pool()
        await pool.close()

    asyncio.run(first())
    assert pids[0] == pids[2] != pids[1]


async def test_a_forked_child_reconnects(postgres_dsn: str) -> None:
    async with connected(postgres_dsn, min_size=1) as client:
        ours = (await client.rows("SELECT pg_backend_pid()", doing="asking"))[0][0]
        reader, writer = os.pipe()
        child = await asyncio.to_thread(_fork_and_ask, client, writer)
        answer = pickle.loads(await asyncio.to_thread(_read_all, reader))
        await asyncio.to_thread(os.waitpid, child, 0)
        assert isinstance(answer, int), answer
        assert answer != ours
        assert (await client.rows("SELECT pg_backend_pid()", doing="asking"))[0][0] == ours


def _fork_and_ask(client: PostgresClient, writer: int) -> int:
    pid = os.fork()
    if pid:
        os.close(writer)
        return pid
    try:

        async def ask() -> Any:
            return (await client.rows("SELECT pg_backend_pid()", doing="asking"))[0][0]

        answer = asyncio.run(ask())
    except BaseException as error:
        answer = repr(error)
    os.write(writer, pickle.dumps(answer))
    os._exit(0)


def _read_all(reader: int) -> bytes:
    with os.fdopen(reader, "rb") as source:
        return source.read()


async def test_a_new_connection_needs_no_look_at_the_catalog(postgres_dsn: str) -> None:
    await admin(postgres_dsn, TABLE)
    things = [full(str(number)) for number in range(3)]
    async with connected(postgres_dsn) as client:
        plain = store(client)
        await plain.insert(things)
        pool = await client.pool()
        pool.discard(await pool.acquire())
        connection = await pool.acquire()
        seen: list[str] = []
        connection.add_query_logger(lambda record: seen.append(record.query))
        pool.release(connection)
        await plain.fetch([each.id for each in things])
        await plain.update(things[0].id, 1, {"parts": things[1].parts})
        await plain.find({"id": {"ne": things[0].id}}, ["-price"], 2, None)
        await plain.delete([each.id for each in things])
        await asyncio.sleep(0)
        assert len(seen) == 4
        assert not any("pg_type" in each for each in seen)


async def test_the_runtime_starts_and_stops_it(postgres_dsn: str) -> None:
    await admin(postgres_dsn, TABLE)
    async with running(postgres_dsn, min_size=2) as ctx:
        assert ctx is not None
        async with connected(postgres_dsn) as other:
            sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'forze'"
            assert (await other.rows(sql, doing="asking"))[0][0] == 3
    async with connected(postgres_dsn) as other, asyncio.timeout(5):
        while (await other.rows(sql, doing="asking"))[0][0] > 1:
            await asyncio.sleep(0.005)
