"""The client: connecting, refusing to, health, event loops, forks, the lifecycle step."""

from __future__ import annotations

import asyncio
import os
import shutil
import ssl
import subprocess
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest
import uvloop

from forze.application.execution import Deps, DepsPlan, ExecutionRuntime, LifecyclePlan
from forze.errors import BackendTimeout, BackendUnavailable, ConfigurationError
from forze.testing.proxy import RespProxy, command
from forze.testing.sentinel import Sentinel
from forze.testing.servers import RespServer, ValkeyServer
from forze_redis.client import RedisClient, RedisClientDepKey
from forze_redis.lifecycle import redis_lifecycle_step
from forze_redis.module import RedisDepsModule
from forze_redis.wire.config import RedisConfig


@asynccontextmanager
async def pretender(answer: Callable[[list[str]], bytes]) -> AsyncIterator[str]:
    """A server that answers what it is told to; its DSN."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            args = []
            for _ in range(int(line[1:])):
                size = int((await reader.readline())[1:])
                args.append((await reader.readexactly(size + 2))[:-2].decode())
            writer.write(answer(args))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def bulk(text: str) -> bytes:
    return f"${len(text)}\r\n{text}\r\n".encode()


async def test_a_new_client_says_how_to_connect() -> None:
    client = RedisClient()
    with pytest.raises(ConfigurationError, match="redis_lifecycle_step"):
        client.call("PING")
    with pytest.raises(ConfigurationError, match="connect"):
        client.redis  # noqa: B018
    health = await client.health()
    assert not health.ok
    assert "connect()" in str(health.error)
    assert client.generation == "00000000"


async def test_connected_it_knows_the_server(redis_server: RespServer, redis_dsn: str) -> None:
    async with await RedisClient().connect(redis_dsn, {"client_name": "me"}) as client:
        health = await client.health()
        assert health.ok
        assert health.server == redis_server.name.lower()
        assert health.version is not None
        assert health.latency_ms is not None
        assert health.breaker == "closed"
        assert health.generation_known
        assert client.generation_known
        assert client.available()
        replication = redis_server.ask("INFO", "replication")
        assert f"master_replid:{client.generation}".encode() in replication
        assert b"name=me" in await client.call("CLIENT", "LIST")
        assert await client.redis.set("k", "v") is True
        assert await client.call("GET", "k") == b"v"
    with pytest.raises(ConfigurationError):
        client.call("PING")
    assert not (await client.health()).ok


async def test_it_names_itself_to_the_server(valkey_dsn: str) -> None:
    async with await RedisClient().connect(valkey_dsn) as client:
        line = await client.call("CLIENT", "INFO")
        assert b"lib-name=forze" in line
        assert b"name=forze" in line
        assert b"resp=3" in line


async def test_over_a_unix_socket_into_a_database(redis_server: RespServer) -> None:
    redis_server.ask("FLUSHALL")
    dsn = redis_server.unix_dsn.replace("db=0", "db=3")
    async with await RedisClient().connect(dsn) as client:
        await client.call("SET", "k", "v")
        await client.redis.set("l", "w")
    async with await RedisClient().connect(redis_server.dsn[:-1] + "3") as client:
        assert await client.call("MGET", "k", "l") == [b"v", b"w"]
        assert await client.call("DBSIZE") == 2
    async with await RedisClient().connect(redis_server.dsn) as client:
        assert await client.call("DBSIZE") == 0


async def test_an_unknown_database_is_a_configuration_error(redis_server: RespServer) -> None:
    with pytest.raises(ConfigurationError, match="no database 99") as refused:
        await RedisClient().connect(redis_server.dsn[:-1] + "99")
    assert refused.value.name == "db"


async def test_passwords() -> None:
    with ValkeyServer(password="p@ss word/%") as server:
        async with await RedisClient().connect(server.dsn) as client:
            assert await client.call("PING") == b"PONG"
            assert await client.redis.ping()
        bare = f"redis://127.0.0.1:{server.port}"
        with pytest.raises(ConfigurationError, match="asks for a password") as refused:
            await RedisClient().connect(bare)
        assert refused.value.name == "password"
        with pytest.raises(ConfigurationError, match="rejected the password") as refused:
            await RedisClient().connect(bare, RedisConfig(password="hunter2"))
        assert "hunter2" not in str(refused.value)
        config = RedisConfig(username="default", password="p@ss word/%")
        async with await RedisClient().connect(bare, config) as client:
            assert await client.call("PING") == b"PONG"


async def test_a_user_without_info_has_no_generation(own_valkey: ValkeyServer) -> None:
    own_valkey.ask(
        "ACL", "SETUSER", "app", "on", ">pw", "~*", "+@all", "-info", "-script", "-select"
    )
    dsn = own_valkey.dsn.replace("//", "//app:pw@")
    async with await RedisClient().connect(dsn) as client:
        assert client.generation == "00000000"
        assert not client.generation_known
        health = await client.health()
        assert health.ok
        assert not health.generation_known
        with pytest.raises(ConfigurationError, match="ACL SETUSER"):
            await client.call("INFO")


async def test_a_server_without_resp3_is_refused_with_its_version() -> None:
    def old(args: list[str]) -> bytes:
        if args[0] == "INFO":
            return bulk("# Server\r\nredis_version:5.0.14\r\n")
        return f"-ERR unknown command `{args[0]}`\r\n".encode()

    async with pretender(old) as dsn:
        with pytest.raises(ConfigurationError) as refused:
            await RedisClient().connect(dsn)
    assert "5.0.14" in str(refused.value)
    assert "Redis 7.0 or Valkey 7.2" in str(refused.value)


@pytest.mark.parametrize(
    ("server", "version", "accepted"),
    [
        ("redis", "6.2.14", False),
        ("redis", "7.0.0", True),
        ("valkey", "7.1.9", False),
        ("valkey", "7.2.0", True),
        ("redis", "10.0.0", True),
        ("other", "soon", False),
    ],
)
async def test_versions(server: str, version: str, accepted: bool) -> None:
    def answer(args: list[str]) -> bytes:
        if args[0] == "HELLO":
            return b"%2\r\n" + b"".join(map(bulk, ["server", server, "version", version]))
        return b"+OK\r\n"

    async with pretender(answer) as dsn:
        client = RedisClient()
        if accepted:
            await client.connect(dsn)
            await client.close()
            return
        with pytest.raises(ConfigurationError, match=f"{server} {version}"):
            await client.connect(dsn)


async def test_something_else_at_the_port_is_said_so() -> None:
    async with pretender(lambda _: b"HTTP/1.1 400 Bad Request\r\n\r\n") as dsn:
        with pytest.raises(BackendUnavailable, match=r"127\.0\.0\.1:\d+"):
            await RedisClient().connect(dsn)


async def test_a_server_that_is_down_at_start(own_valkey: ValkeyServer) -> None:
    dsn = own_valkey.dsn.replace("//", "//u:secret@")
    own_valkey.kill()
    with pytest.raises(BackendUnavailable) as refused:
        await RedisClient().connect(dsn)
    assert f"127.0.0.1:{own_valkey.port}" in str(refused.value)
    assert "require_at_start=False" in str(refused.value)
    assert "secret" not in str(refused.value)
    assert refused.value.outcome == "none"
    with pytest.raises(BackendUnavailable):
        await RedisClient().connect("redis://no-such-host.invalid")
    with pytest.raises(BackendUnavailable):
        await RedisClient().connect(f"unix://{own_valkey.directory}/absent")


async def test_a_silent_server_costs_the_connect_timeout(valkey: ValkeyServer) -> None:
    async with RespProxy(valkey.port) as proxy:
        proxy.black_hole()
        config = RedisConfig(connect_timeout=timedelta(milliseconds=80))
        with pytest.raises(BackendUnavailable, match=r"0\.08 s"):
            await RedisClient().connect(proxy.dsn, config)


async def test_health_never_raises_and_sees_trouble(own_valkey: ValkeyServer) -> None:
    async with await RedisClient().connect(own_valkey.dsn) as client:
        own_valkey.pause()
        health = await client.health()
        assert not health.ok
        assert "did not answer" in str(health.error)
        assert health.in_flight == 1
        own_valkey.resume()
        own_valkey.kill()
        health = await client.health()
        assert not health.ok
        assert health.breaker == "open"
        assert health.breaker_since is not None


def test_another_event_loop_reconnects_there(valkey_dsn: str) -> None:
    client = RedisClient()

    async def first() -> None:
        await client.connect(valkey_dsn)
        assert await client.call("SET", "k", "1") == b"OK"
        assert await client.redis.get("k") == b"1"

    async def later() -> None:
        assert await client.send_cached(b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n") == b"1"
        assert await client.redis.get("k") == b"1"

    async def last() -> None:
        assert await client.call("GET", "k") == b"1"
        await client.close()

    asyncio.run(first())
    asyncio.run(later())
    asyncio.run(last())


def test_another_running_loop_takes_over(valkey: ValkeyServer, valkey_dsn: str) -> None:
    client = RedisClient()
    started, moved = threading.Event(), threading.Event()
    outcome: list[str] = []

    async def here() -> None:
        async with RespProxy(valkey.port) as proxy:
            held = proxy.hold_reply(command("ECHO"))
            await client.connect(proxy.dsn)
            pending = client.call("ECHO", "held")
            await held.seen()
            client._endpoint = (await RedisClient().connect(valkey_dsn))._endpoint
            started.set()
            with pytest.raises(BackendUnavailable) as lost:
                await pending
            outcome.append(lost.value.outcome)
            await asyncio.to_thread(moved.wait, 5)

    async def there() -> None:
        assert await client.call("PING") == b"PONG"
        await client.close()

    thread = threading.Thread(target=lambda: asyncio.run(here()))
    thread.start()
    assert started.wait(5)
    asyncio.run(there())
    moved.set()
    thread.join(5)
    assert outcome == ["unknown"]


def test_a_forked_child_connects_anew_and_leaves_the_parent_alone(
    valkey: ValkeyServer, valkey_dsn: str
) -> None:
    client = RedisClient()
    parent_id: int | None = None

    async def in_child() -> bool:
        ours: int = await client.call("CLIENT", "ID")
        value: bytes = await client.call("GET", "k")
        return value == b"1" and ours != parent_id

    async def in_parent() -> tuple[int, int]:
        await client.connect(valkey_dsn)
        await client.call("SET", "k", "1")
        await client.redis.ping()
        nonlocal parent_id
        parent_id = await client.call("CLIENT", "ID")
        child = os.fork()
        if child == 0:  # pragma: no cover - the child reports by its exit status
            code = 1
            try:
                thread = threading.Thread(target=lambda: results.append(asyncio.run(in_child())))
                results: list[bool] = []
                thread.start()
                thread.join(5)
                code = 0 if results == [True] else 1
            finally:
                os._exit(code)
        status = await asyncio.to_thread(os.waitpid, child, 0)
        assert await client.call("GET", "k") == b"1"
        assert await client.call("CLIENT", "ID") == parent_id
        assert await client.redis.ping()
        await client.close()
        return status

    _, status = asyncio.run(in_parent())
    assert os.waitstatus_to_exitcode(status) == 0


BUSY = "local since = os.clock() while os.clock() - since < 0.2 do end"


def test_on_uvloop(valkey_dsn: str) -> None:
    async def main() -> None:
        async with await RedisClient().connect(valkey_dsn) as client:
            replies = await asyncio.gather(*(client.call("ECHO", str(n)) for n in range(100)))
            assert replies == [str(n).encode() for n in range(100)]
            assert await client.call("SET", "k", b"v" * 300_000) == b"OK"
            with pytest.raises(BackendTimeout):
                await client.call("EVAL", BUSY, 0, timeout=0.05)
            assert await client.call("PING") == b"PONG"

    uvloop.run(main())


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for localhost that vouches for itself, and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl on the PATH: nothing was tested over TLS")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]
    command += ["-days", "2"]
    command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(command, check=True, capture_output=True)
    return cert, key


async def test_over_tls(
    valkey: ValkeyServer, valkey_dsn: str, certificate: tuple[Path, Path]
) -> None:
    cert, key = certificate
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)
    async with tunnel(valkey.port, context) as port:
        config = RedisConfig(tls_ca=str(cert))
        async with await RedisClient().connect(f"rediss://localhost:{port}", config) as client:
            assert await client.call("PING") == b"PONG"
            assert await client.call("SET", "k", b"v" * 300_000) == b"OK"
        config = RedisConfig(tls_verify=False)
        async with await RedisClient().connect(f"valkeys://127.0.0.1:{port}", config) as client:
            assert await client.redis.ping()
        with pytest.raises(BackendUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
            await RedisClient().connect(f"rediss://localhost:{port}")


async def test_sentinels_over_tls(
    valkey: ValkeyServer, valkey_dsn: str, certificate: tuple[Path, Path]
) -> None:
    cert, key = certificate
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)
    with Sentinel("main", valkey) as sentinel:
        async with tunnel(valkey.port, context) as port, tunnel(sentinel.port, context) as asked:
            for name in ("resolve-hostnames", "announce-hostnames"):
                sentinel.ask("SENTINEL", "CONFIG", "SET", name, "yes")
            sentinel.ask("SENTINEL", "REMOVE", "main")
            sentinel.ask("SENTINEL", "MONITOR", "main", "localhost", str(port), "1")
            dsn = f"rediss+sentinel://localhost:{asked}/main"
            config = RedisConfig(tls_ca=str(cert))
            async with await RedisClient().connect(dsn, config) as client:
                assert await client.call("SET", "k", b"v" * 300_000) == b"OK"
                assert await client.redis.strlen("k") == 300_000
            with pytest.raises(BackendUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
                await RedisClient().connect(dsn)


async def test_a_forked_child_does_not_keep_the_parents_connection_open(
    valkey: ValkeyServer, valkey_dsn: str
) -> None:
    client = await RedisClient().connect(valkey_dsn, RedisConfig(client_name="forker"))
    until_closed, close = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover - it only has to exist
        os.close(close)
        os.read(until_closed, 1)
        os._exit(0)
    try:
        await client.close()
        async with asyncio.timeout(5):
            while b" name=forker " in (clients := valkey.ask("CLIENT", "LIST")):
                await asyncio.sleep(0.01)
        assert b" name=forker " not in clients
    finally:
        os.close(close)
        os.close(until_closed)
        await asyncio.to_thread(os.waitpid, child, 0)


@asynccontextmanager
async def tunnel(port: int, context: ssl.SSLContext) -> AsyncIterator[int]:
    """Takes TLS off and passes on to ``port``; its own port."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind, to = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pump(reader, to), pump(behind, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def test_closing_lets_calls_be_answered(valkey_dsn: str) -> None:
    client = await RedisClient().connect(valkey_dsn)
    call = client.call("ECHO", "last words")
    await client.close()
    assert await call == b"last words"


async def test_connecting_again_moves(valkey_dsn: str, valkey: ValkeyServer) -> None:
    config = RedisConfig(client_name="mover")
    client = await RedisClient().connect(valkey_dsn, config)
    await client.connect(valkey.unix_dsn, config)
    assert valkey.ask("CLIENT", "LIST").count(b" name=mover ") == 1
    await client.close()


async def test_the_lifecycle_step_connects_the_registered_client(valkey_dsn: str) -> None:
    client = RedisClient()
    runtime = ExecutionRuntime(
        deps=DepsPlan.from_modules(lambda: Deps(plain={RedisClientDepKey: client})),
        lifecycle=LifecyclePlan.from_steps(redis_lifecycle_step(dsn=valkey_dsn)),
    )
    async with runtime.scope():
        assert await client.call("PING") == b"PONG"
    assert not (await client.health()).ok


async def test_the_lifecycle_step_takes_a_client_and_reports_a_wrong_dsn() -> None:
    step = redis_lifecycle_step(dsn="nonsense", client=RedisClient(), id="second")
    assert step.id == "second"
    runtime = ExecutionRuntime(deps=DepsPlan(), lifecycle=LifecyclePlan.from_steps(step))
    with pytest.raises(ConfigurationError, match="nonsense"):
        async with runtime.scope():
            pass


async def test_two_runtimes_cannot_share_a_client(valkey_dsn: str) -> None:
    """The second would close the first one's connection when it leaves."""
    client = RedisClient()

    def runtime() -> ExecutionRuntime:
        return ExecutionRuntime(
            deps=DepsPlan.from_modules(RedisDepsModule(client=client)),
            lifecycle=LifecyclePlan.from_steps(redis_lifecycle_step(dsn=valkey_dsn)),
        )

    async with runtime().scope():
        with pytest.raises(ConfigurationError, match="connected already"):
            async with runtime().scope():
                pass
        assert await client.call("PING") == b"PONG"
    async with runtime().scope():
        assert await client.call("PING") == b"PONG"
