"""PostgreSQL stopped, killed, restarted, and replies cut off after the server did the work."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote

import asyncpg
import pytest
from tests.integration.postgres_documents import ENDLESS, TABLE, Thing, admin, connected, store

from forze.application.contracts.tenancy import bind_deadline
from forze.errors import BackendError, BackendTimeout, BackendUnavailable
from forze.testing.servers import PostgresServer


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL for one test."""
    with PostgresServer() as server:
        yield server


class Proxy:
    """Passes a Unix socket on, and cuts the client off where the reply to ``cut_at`` would come."""

    def __init__(self, server: Path) -> None:
        self._server = server
        self.cut_at: bytes | None = None
        self._open: list[asyncio.StreamWriter] = []
        self.tasks: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream, server = await asyncio.open_unix_connection(str(self._server))
        cut = asyncio.Event()
        self._open += [writer, server]
        back = asyncio.create_task(self._replies(upstream, writer, cut))
        self.tasks.add(back)
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                if self.cut_at is not None and self.cut_at in data:
                    cut.set()
                server.write(data)
                await server.drain()
        server.close()

    async def _replies(
        self, upstream: asyncio.StreamReader, writer: asyncio.StreamWriter, cut: asyncio.Event
    ) -> None:
        with suppress(ConnectionError):
            while data := await upstream.read(65536):
                if cut.is_set():
                    break  # the server has answered, the client never hears it
                writer.write(data)
                await writer.drain()
        writer.close()

    def close(self) -> None:
        for each in self._open:
            each.close()


@asynccontextmanager
async def proxied(
    server: PostgresServer, dsn: str, tmp_path: Path
) -> AsyncIterator[tuple[Proxy, str]]:
    proxy = Proxy(server.directory / ".s.PGSQL.5432")
    listener = await asyncio.start_unix_server(proxy.serve, tmp_path / ".s.PGSQL.5432")
    name = dsn.partition("?")[0].rpartition("/")[2]
    yield proxy, f"postgresql://postgres@/{name}?host={quote(str(tmp_path))}"
    proxy.close()
    listener.close()
    await asyncio.gather(*proxy.tasks, return_exceptions=True)
    await listener.wait_closed()


async def _still_running(error: BackendError) -> bool:
    assert error.still_running is not None
    return await error.still_running()


async def _until_gone(error: BackendError) -> None:
    async with asyncio.timeout(5):
        while await _still_running(error):
            await asyncio.sleep(0.01)


async def test_a_commit_whose_answer_is_lost_is_unknown(
    postgres_server: PostgresServer, postgres_dsn: str, tmp_path: Path
) -> None:
    await admin(postgres_dsn, TABLE)
    async with (
        proxied(postgres_server, postgres_dsn, tmp_path) as (proxy, dsn),
        connected(dsn) as client,
    ):
        session = await client.manager.begin(isolation=None, read_only=False)
        sql = "INSERT INTO thing VALUES (gen_random_uuid(), 1, now(), now(), 'x', 1)"
        await session.run(lambda c, limit: c.fetch(sql), "inserting")
        proxy.cut_at = b"COMMIT"
        with pytest.raises(BackendUnavailable) as caught:
            await session.commit()
        proxy.cut_at = None
        assert caught.value.outcome == "unknown"
        await _until_gone(caught.value)
        assert await store(client).count({}) == 1, "it was committed"
        assert (await client.pool()).idle == (await client.pool()).size


async def test_a_write_whose_answer_is_lost_is_unknown(
    postgres_server: PostgresServer, postgres_dsn: str, tmp_path: Path
) -> None:
    await admin(postgres_dsn, TABLE)
    thing = Thing(name="unmistakable")
    async with (
        proxied(postgres_server, postgres_dsn, tmp_path) as (proxy, dsn),
        connected(dsn, min_size=1, max_size=1) as client,
    ):
        things = store(client)
        await things.insert([Thing(name="first")])
        proxy.cut_at = b"unmistakable"
        for batch in ([thing], [Thing(name="other"), Thing(name="unmistakable")]):
            with pytest.raises(BackendUnavailable) as caught:
                await things.insert(batch)
            assert caught.value.outcome == "unknown"
        with pytest.raises(BackendUnavailable) as caught:
            await things.count({"name": "unmistakable"})
        assert (caught.value.outcome, caught.value.still_running) == ("none", None)
        proxy.cut_at = None
        assert await things.count({}) == 4, "all were written"


async def test_still_running_while_the_backend_works(postgres_dsn: str) -> None:
    await admin(postgres_dsn, TABLE)
    thing = Thing(name="x")
    holder = await asyncpg.connect(postgres_dsn)
    async with connected(postgres_dsn, max_size=1) as client:
        await store(client).insert([thing])
        pid = (await client.rows("SELECT pg_backend_pid()", doing="asking"))[0][0]
        lost = client.unknown(ConnectionResetError(), pid, "testing")
        assert await _still_running(lost)
        held = holder.transaction()
        await held.start()
        await holder.execute("SELECT * FROM thing FOR UPDATE")
        with bind_deadline(timedelta(milliseconds=50)), pytest.raises(BackendTimeout) as caught:
            await store(client).touch(thing.id)
        assert caught.value.outcome == "unknown"
        await held.rollback()
        await _until_gone(caught.value)
        await _until_gone(lost)
        assert (await client.health()).ok
    await holder.close()


async def test_a_stopped_server(own_postgres: PostgresServer) -> None:
    await admin(own_postgres.dsn, TABLE)
    thing = Thing(name="x")
    async with connected(own_postgres.dsn, connect_timeout=0.1, min_size=2) as client:
        things = store(client)
        await things.insert([thing])
        session = await client.manager.begin(isolation=None, read_only=False)
        own_postgres.pause()
        try:
            with bind_deadline(timedelta(milliseconds=50)):
                with pytest.raises(BackendTimeout) as caught:
                    await things.touch(thing.id)
                assert caught.value.outcome == "unknown"
                assert await _still_running(caught.value), "not known: taken for yes"
            with bind_deadline(timedelta(milliseconds=50)), pytest.raises(BackendError):
                await things.fetch([thing.id])
            health = await client.health()
            assert not health.ok
            assert health.error
            async with asyncio.timeout(5):
                await session.rollback()
        finally:
            own_postgres.resume()
        async with asyncio.timeout(5):
            while not (await client.health()).ok:
                await asyncio.sleep(0.01)
        assert (await things.fetch([thing.id]))[thing.id].rev in (1, 2)


async def test_a_killed_server_and_its_return(own_postgres: PostgresServer) -> None:
    await admin(own_postgres.dsn, TABLE)
    thing = Thing(name="x")
    async with connected(own_postgres.dsn, min_size=2) as client:
        things = store(client)
        await things.insert([thing])
        await admin(own_postgres.dsn, "CHECKPOINT")  # it runs without fsync
        session = await client.manager.begin(isolation=None, read_only=False)
        own_postgres.kill()
        with pytest.raises(BackendUnavailable) as caught:
            await session.commit()
        assert caught.value.outcome in ("none", "unknown")
        await asyncio.sleep(0.02)  # the loop hears that the other connections are gone
        attempts: list[Callable[[], Awaitable[object]]] = [
            lambda: things.fetch([thing.id]),
            lambda: things.touch(thing.id),
            lambda: client.manager.begin(isolation=None, read_only=False),
        ]
        for attempt in attempts:
            with pytest.raises(BackendUnavailable, match=str(own_postgres.directory)) as caught:
                await attempt()
            assert caught.value.outcome == "none", "nothing could be sent"
        assert not (await client.health()).ok
        own_postgres.start()
        assert (await things.fetch([thing.id]))[thing.id].rev == 1
        own_postgres.restart()
        await asyncio.sleep(0.02)
        assert (await things.touch(thing.id)).rev == 2, "idle connections that died are replaced"


async def test_closing_while_statements_run(postgres_dsn: str) -> None:
    async with connected(postgres_dsn, max_size=1) as client:
        pool = await client.pool()
        running = asyncio.create_task(client.rows(ENDLESS, doing="sleeping"))
        waiting = asyncio.create_task(client.rows("SELECT 1", doing="asking"))
        while not pool.waiting:
            await asyncio.sleep(0.001)
        async with asyncio.timeout(5):
            await client.close()
        for each in (running, waiting):
            with pytest.raises(BackendUnavailable):
                await each
        assert pool.size == 0
