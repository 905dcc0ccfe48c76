"""The clients behind the manager over everything that an URL can name, blocking and not."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop
from redis import exceptions as driver

from forze.errors import BackendError, ConfigurationError
from forze.testing.cluster import ValkeyCluster
from forze.testing.sentinel import Sentinel
from forze.testing.servers import ValkeyServer
from forze_redis import RedisManager
from forze_redis.driver import (
    ConnectionLimit,
    DriverOptions,
    PoolTimeout,
    async_client,
    leave,
    sync_client,
)

OPTIONS = DriverOptions(
    max_connections=3, socket_timeout=10, connect_timeout=5, pool_timeout=10, client_name="driven"
)


async def left_by_both_sides(url: str, prefix: str) -> list[str]:
    """Writes, reads, a pipeline and a pattern over ``url``, here and on a thread; what is left."""
    manager = RedisManager(url=url, pool_size=3, socket_timeout=20)
    await manager.initialize_async()
    keys = [f"{prefix}{number}" for number in range(30)]
    await asyncio.gather(*(manager.set_async(key, "v") for key in keys))
    assert await manager.get_async(keys[0]) == "v"
    client: Any = await manager.get_async_client()
    pipe = client.pipeline(transaction=False)
    assert await pipe.incr(f"{prefix}n").expire(f"{prefix}n", 60).execute() == [1, True]
    assert await manager.delete_async(*keys[:10]) == 10
    assert await manager.delete_pattern_async(f"{prefix}*") == 21

    def blocking() -> None:
        for key in keys:
            manager.set_sync(key, "v")
        assert manager.get_sync(keys[0]) == "v"
        pipe = manager.get_sync_client().pipeline(transaction=False)
        pipe.incr(f"{prefix}n")
        pipe.expire(f"{prefix}n", 60)
        assert pipe.execute() == [1, True]
        assert manager.delete_sync(*keys[:10]) == 10
        assert manager.delete_pattern_sync(f"{prefix}*") == 21
        assert manager.sync_test_connection()

    await asyncio.to_thread(blocking)
    await manager.close()
    left = [key async for key in client.scan_iter(f"{prefix}*")]
    await manager.close()
    return left


async def test_over_a_unix_socket(valkey: ValkeyServer, valkey_dsn: str) -> None:
    assert await left_by_both_sides(valkey.unix_dsn, "u:") == []


async def test_over_another_database_and_the_schemes_of_valkey(
    valkey: ValkeyServer, valkey_dsn: str
) -> None:
    assert await left_by_both_sides(f"valkey://127.0.0.1:{valkey.port}/3", "v:") == []


async def test_over_a_cluster(valkey_cluster: ValkeyCluster) -> None:
    assert await left_by_both_sides(valkey_cluster.dsn, "c:") == []
    for node in valkey_cluster.nodes:
        assert b"lib-name=redis-py" not in node.ask("CLIENT", "LIST")


async def test_redirections_close_nobodys_connection(valkey_cluster: ValkeyCluster) -> None:
    """Many slots have moved: redis-py closes all connections at every fifth redirection."""
    client: Any = async_client(valkey_cluster.dsn, OPTIONS)
    try:
        await client.initialize()
        slots = client.nodes_manager.slots_cache
        primaries = list({each[0].name: each[0] for each in slots.values()}.values())
        wrong = {each.name: primaries[at - 1] for at, each in enumerate(primaries)}
        slots.update({slot: [wrong[each[0].name]] for slot, each in tuple(slots.items())})
        replies = await asyncio.gather(*(client.set(f"moved:{n}", n, px=9_000) for n in range(60)))
        assert replies == [True] * 60
    finally:
        await client.aclose()


def test_a_cluster_from_one_event_loop_after_the_other(valkey_cluster: ValkeyCluster) -> None:
    client: Any = async_client(valkey_cluster.dsn, OPTIONS)

    async def use() -> None:
        await asyncio.gather(*(client.set(f"l:{n}", n) for n in range(30)))
        assert await client.get("l:7") == "7"
        await client.delete(*(f"l:{n}" for n in range(30)))

    for _ in range(2):
        asyncio.run(use())
    for node in valkey_cluster.nodes:
        assert b"name=driven" not in node.ask("CLIENT", "LIST")


@pytest.mark.parametrize("sync", [False, True], ids=["async", "sync"])
async def test_a_cluster_that_hangs_does_not_hold_its_callers_up_one_after_the_other(
    valkey_cluster: ValkeyCluster, sync: bool
) -> None:
    """Each of them would ask every node for the layout, behind the one before."""
    manager = RedisManager(url=valkey_cluster.dsn, socket_timeout=0.3)

    async def call() -> float:
        began = time.monotonic()
        with pytest.raises(BackendError):
            await (asyncio.to_thread(manager.get_sync, "k") if sync else manager.get_async("k"))
        return time.monotonic() - began

    valkey_cluster.pause()
    try:
        took = await asyncio.gather(*(call() for _ in range(5)))
    finally:
        valkey_cluster.resume()
        valkey_cluster.wait_until_ok()
    assert max(took) < 2.5  # one after the other: 4.5 s
    await manager.close()


async def test_a_connection_that_was_closed_under_a_call_is_a_lost_one(valkey_dsn: str) -> None:
    """redis-py closes all of a cluster's when one call has failed, before others have written."""
    client: Any = async_client(valkey_dsn, OPTIONS)
    connection = await client.connection_pool.get_connection()
    await client.connection_pool.leave(in_use=True).gone()
    await connection.disconnect()
    with pytest.raises(driver.ConnectionError, match="closed by another call"):
        await connection._send_packed_command(connection.pack_command("GET", "k"))
    await client.connection_pool.release(connection)
    await client.aclose()


async def test_over_tls(valkey: ValkeyServer, valkey_dsn: str, tmp_path: Path) -> None:
    cert, context = certificate(tmp_path)
    async with tunnel(valkey.port, context) as port:
        assert (
            await left_by_both_sides(f"rediss://localhost:{port}?ssl_ca_certs={cert}", "t:") == []
        )
        stranger: Any = async_client(f"rediss://localhost:{port}", OPTIONS)
        with pytest.raises(driver.ConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
            await stranger.ping()
        blocking: Any = sync_client(f"rediss://localhost:{port}", OPTIONS)
        with pytest.raises(driver.ConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
            await asyncio.to_thread(blocking.ping)


async def test_the_primary_that_the_sentinels_name(
    valkey: ValkeyServer, valkey_dsn: str, own_valkey: ValkeyServer
) -> None:
    with Sentinel("main", valkey) as sentinel:
        dsn = f"redis+sentinel://127.0.0.1:1,127.0.0.1:{sentinel.port}/main"  # one is down
        assert await left_by_both_sides(dsn, "s:") == []
        manager = RedisManager(url=dsn, pool_size=3, socket_timeout=20)
        await manager.set_async("k", "old")
        assert await asyncio.to_thread(manager.get_sync, "k") == "old"
        own_valkey.ask("SET", "k", "new")
        sentinel.ask("SENTINEL", "REMOVE", "main")
        sentinel.ask("SENTINEL", "MONITOR", "main", "127.0.0.1", str(own_valkey.port), "1")
        valkey.ask("CLIENT", "KILL", "TYPE", "normal")  # as a failover does
        assert await manager.get_async("k") == "new"
        assert await asyncio.to_thread(manager.get_sync, "k") == "new"
        await manager.close()
        lost = RedisManager(url=f"redis+sentinel://127.0.0.1:{sentinel.port}/other")
        with pytest.raises(ConfigurationError, match="knows no service 'other'"):
            lost.sync_test_connection()


@pytest.mark.parametrize("make", [async_client, sync_client])
def test_a_url_that_cannot_be_is_refused_at_once(make: Any) -> None:
    with pytest.raises(ConfigurationError) as refused:
        make("mysql://user:secret@h", OPTIONS)
    assert "secret" not in str(refused.value)


async def test_one_bound_over_two_clients(valkey: ValkeyServer, valkey_dsn: str) -> None:
    limit = ConnectionLimit(1)
    one: Any = async_client(valkey_dsn, OPTIONS, limit=limit)
    other: Any = sync_client(valkey_dsn, OPTIONS, limit=limit)
    for number in range(3):
        await one.set("k", number)
        assert await asyncio.to_thread(other.get, "k") == str(number)
        assert valkey.ask("CLIENT", "LIST").count(b"name=driven") == 1
    await one.aclose()
    await leave(other).gone()
    assert limit.held == 0


async def test_who_waits_too_long_is_told_so(valkey_dsn: str) -> None:
    options = DriverOptions(
        max_connections=1, socket_timeout=10, connect_timeout=5, pool_timeout=0.05
    )
    client: Any = async_client(valkey_dsn, options)
    async with client.pubsub() as listener:
        await listener.subscribe("news")
        with pytest.raises(PoolTimeout, match="all 1 connections"):
            await client.get("k")
    assert await client.get("k") is None
    await client.aclose()
    blocking: Any = sync_client(valkey_dsn, options)
    with blocking.pubsub() as listener:
        listener.subscribe("news")
        with pytest.raises(PoolTimeout, match="all 1 connections"):
            blocking.get("k")
    assert blocking.get("k") is None
    blocking.close()


async def test_what_the_server_closed_while_idle_is_replaced(
    valkey: ValkeyServer, valkey_dsn: str
) -> None:
    client: Any = async_client(valkey_dsn, OPTIONS)
    blocking: Any = sync_client(valkey_dsn, OPTIONS)
    for _ in range(3):
        await client.ping()
        blocking.ping()
        valkey.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await asyncio.sleep(0.01)
    assert await client.ping()
    assert blocking.ping()
    await client.aclose()
    blocking.close()


def test_on_uvloop(valkey: ValkeyServer, valkey_dsn: str) -> None:
    client: Any = async_client(valkey_dsn, OPTIONS)
    blocking: Any = sync_client(valkey_dsn, OPTIONS, limit=client.connection_pool.limit)

    async def use() -> None:
        await asyncio.gather(*(client.incr("n") for _ in range(50)))
        assert await asyncio.to_thread(blocking.get, "n") == "50"
        await client.delete("n")

    for _ in range(2):
        uvloop.run(use())
    blocking.close()
    assert b"name=driven" not in valkey.ask("CLIENT", "LIST")


def certificate(directory: Path) -> tuple[Path, ssl.SSLContext]:
    """A certificate for localhost that vouches for itself, and a server's context with it."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl on the PATH: nothing was tested over TLS")
    cert, key = directory / "cert.pem", directory / "key.pem"
    command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-subj", "/CN=localhost", "-days", "2"]
    command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)
    return cert, context


@asynccontextmanager
async def tunnel(port: int, context: ssl.SSLContext) -> AsyncIterator[int]:
    """Takes TLS off and passes on to ``port``; its own port."""
    pumps: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
        except (OSError, ssl.SSLError):
            pass
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind, to = await asyncio.open_connection("127.0.0.1", port)
        for way in (pump(reader, to), pump(behind, writer)):
            task = asyncio.create_task(way)
            pumps.add(task)
            task.add_done_callback(pumps.discard)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        while pumps:
            await asyncio.wait(set(pumps), timeout=5)
