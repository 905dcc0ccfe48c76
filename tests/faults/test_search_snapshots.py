"""Snapshots among faults: a run is there as a whole or not at all, and what is left expires."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from forze.application.contracts.search import (
    SearchResultSnapshotPort,
    SearchResultSnapshotSpec,
    SnapshotState,
)
from forze.application.execution import DepsPlan, ExecutionRuntime, LifecyclePlan
from forze.errors import BackendError, ConflictError
from forze.testing.proxy import Hold, RespProxy, command, script
from forze.testing.servers import RespServer
from forze_redis import RedisClient, RedisDepsModule, redis_lifecycle_step
from forze_redis.search_snapshot import PUBLISH, STAGE, STAGED_MS

ROOT = Path(__file__).parents[2]
RESULTS = SearchResultSnapshotSpec(name="results")
NAMESPACE = "app:results"
RUN = f"{NAMESPACE}/r"
LARGE = list(range(50_000))
"""Four parts: three are staged, the last is published."""


@asynccontextmanager
async def snapshots(dsn: str) -> AsyncIterator[SearchResultSnapshotPort]:
    """The port of a process of its own."""
    module = RedisDepsModule(
        client=RedisClient(), search_snapshots={"results": {"namespace": NAMESPACE}}
    )
    runtime = ExecutionRuntime(
        deps=DepsPlan.from_modules(module),
        lifecycle=LifecyclePlan.from_steps(redis_lifecycle_step(dsn=dsn)),
    )
    async with runtime.scope() as ctx:
        yield ctx.search_snapshot(RESULTS)


@pytest.fixture
async def proxy(redis_server: RespServer, redis_dsn: str) -> AsyncIterator[RespProxy]:
    """Between the writer and an empty server."""
    async with RespProxy(redis_server.port) as between:
        yield between


@pytest.fixture
async def port(proxy: RespProxy) -> AsyncIterator[SearchResultSnapshotPort]:
    """The writer's."""
    async with snapshots(proxy.dsn) as mine:
        yield mine


@pytest.fixture
async def reader(
    redis_server: RespServer, redis_dsn: str
) -> AsyncIterator[SearchResultSnapshotPort]:
    """Another process, past the proxy."""
    async with snapshots(redis_dsn) as other:
        yield other


async def nothing_left_but(server: RespServer, *keys: str) -> None:
    """Return when the server holds these keys only."""
    async with asyncio.timeout(2):
        while set(server.ask("KEYS", "*").split()[2::2]) != {each.encode() for each in keys}:
            await asyncio.sleep(0.01)


def staging(proxy: RespProxy, what: str, place: int) -> Hold:
    """Do ``what`` to the ``place``-th command of a large write, counted from 0."""
    seen = 0
    mine = script(STAGE), script(PUBLISH)

    def match(args: list[bytes]) -> bool:
        nonlocal seen
        if not any(each(args) for each in mine):
            return False
        seen += 1
        return seen == place + 1

    hold: Hold = getattr(proxy, what)(match)
    return hold


async def test_large_means_four_parts(proxy: RespProxy, port: SearchResultSnapshotPort) -> None:
    await port.put_run("r", "f", LARGE)
    sent = [each for each in proxy.commands if script(STAGE)(each) or script(PUBLISH)(each)]
    assert len([each for each in sent if each[0] == b"EVALSHA"]) == 4
    assert await port.get_id_range("r", 49_999, 5) == [49_999]


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("what", ["hold_request", "hold_reply"])
@pytest.mark.parametrize("before", [True, False], ids=["over a run", "new"])
async def test_cancelled_at_any_part(
    proxy: RespProxy,
    port: SearchResultSnapshotPort,
    reader: SearchResultSnapshotPort,
    redis_server: RespServer,
    place: int,
    what: str,
    before: bool,
) -> None:
    if before:
        await reader.put_run("r", "old", [1, 2, 3])
    hold = staging(proxy, what, place)
    writer = asyncio.create_task(port.put_run("r", "new", LARGE))
    await hold.seen()
    published = place == 3 and what == "hold_reply"
    meta = await reader.get_meta("r")
    if published:
        assert (meta.fingerprint, meta.total) == ("new", 50_000)
    elif before:
        assert (meta.fingerprint, meta.total) == ("old", 3)
        assert await reader.get_id_range("r", 0, 9) == [1, 2, 3]
    else:
        begun = place > 0 or what == "hold_reply"
        assert meta.state is (SnapshotState.INCOMPLETE if begun else SnapshotState.MISSING)
        assert await reader.get_id_range("r", 0, 9) is None
    writer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writer
    hold.release()
    await port.get_meta("elsewhere")
    # The last part was under way: the run is the old one, or the whole of the new.
    sent_last = place == 3
    await nothing_left_but(redis_server, *([RUN] if before or sent_last else []))
    meta = await reader.get_meta("r")
    if sent_last:
        assert (meta.fingerprint, meta.total) == ("new", 50_000)
        assert await reader.get_id_range("r", 49_998, 9) == [49_998, 49_999]
    elif before:
        assert await reader.get_id_range("r", 0, 9, "old") == [1, 2, 3]
    else:
        assert meta.state is SnapshotState.MISSING


@pytest.mark.parametrize("place", range(4))
async def test_a_lost_reply_is_unknown_and_the_run_whole_or_not_there(
    proxy: RespProxy,
    port: SearchResultSnapshotPort,
    reader: SearchResultSnapshotPort,
    redis_server: RespServer,
    place: int,
) -> None:
    await reader.put_run("r", "old", [1, 2, 3])
    staging(proxy, "drop_reply", place)
    with pytest.raises(BackendError) as caught:
        await port.put_run("r", "new", LARGE)
    assert caught.value.outcome == "unknown"
    meta = await reader.get_meta("r")
    assert (meta.fingerprint, meta.total) == (("new", 50_000) if place == 3 else ("old", 3))
    await port.put_run("r", "again", LARGE)
    assert await reader.get_id_range("r", 49_998, 9, "again") == [49_998, 49_999]
    for key in redis_server.ask("KEYS", "*!*").split()[2::2]:
        left = int(redis_server.ask("PTTL", key.decode()).strip(b":\r\n"))
        assert left <= STAGED_MS, "what could not be removed expires"


async def test_a_small_run_whose_reply_was_lost(
    proxy: RespProxy, port: SearchResultSnapshotPort, reader: SearchResultSnapshotPort
) -> None:
    proxy.drop_reply(command("SET", RUN))
    with pytest.raises(BackendError) as caught:
        await port.put_run("r", "f", [1, 2, 3])
    assert caught.value.outcome == "unknown"
    assert await reader.get_id_range("r", 0, 9) == [1, 2, 3]


@pytest.mark.parametrize("place", range(1, 4))
async def test_deleted_while_it_is_written(
    proxy: RespProxy,
    port: SearchResultSnapshotPort,
    reader: SearchResultSnapshotPort,
    redis_server: RespServer,
    place: int,
) -> None:
    hold = staging(proxy, "hold_request", place)
    writer = asyncio.create_task(port.put_run("r", "new", LARGE))
    await hold.seen()
    assert (await reader.get_meta("r")).state is SnapshotState.INCOMPLETE
    assert await reader.delete_run("r") is False
    await nothing_left_but(redis_server)
    assert (await reader.get_meta("r")).state is SnapshotState.MISSING
    hold.release()
    with pytest.raises(ConflictError, match="deleted while it was being written"):
        await writer
    await nothing_left_but(redis_server)


async def test_a_server_that_forgot_what_was_written(
    proxy: RespProxy, port: SearchResultSnapshotPort, redis_server: RespServer
) -> None:
    hold = staging(proxy, "hold_request", 2)
    writer = asyncio.create_task(port.put_run("r", "new", LARGE))
    await hold.seen()
    redis_server.ask("FLUSHALL")
    hold.release()
    with pytest.raises(ConflictError, match="lost what was written"):
        await writer
    await nothing_left_but(redis_server)


async def test_the_later_writer_to_finish_stands(
    proxy: RespProxy,
    port: SearchResultSnapshotPort,
    reader: SearchResultSnapshotPort,
    redis_server: RespServer,
) -> None:
    hold = staging(proxy, "hold_request", 2)
    slow = asyncio.create_task(port.put_run("r", "slow", LARGE))
    await hold.seen()
    await reader.put_run("r", "quick", LARGE[:40_000])
    assert (await reader.get_meta("r")).fingerprint == "quick"
    hold.release()
    await slow
    meta = await reader.get_meta("r")
    assert (meta.fingerprint, meta.total) == ("slow", 50_000)
    await nothing_left_but(redis_server, RUN)


WRITER = """
import asyncio, sys
from tests.faults.test_search_snapshots import LARGE, snapshots

async def main():
    async with snapshots(sys.argv[1]) as port:
        await port.put_run("r", "new", LARGE)

asyncio.run(main())
"""


@pytest.mark.parametrize("place", [1, 3])
async def test_a_writer_killed_halfway(
    proxy: RespProxy, reader: SearchResultSnapshotPort, redis_server: RespServer, place: int
) -> None:
    """SIGKILL: nobody cleans up, nothing is visible, and what is left goes with delete or time."""
    await reader.put_run("r", "old", [1, 2, 3])
    hold = staging(proxy, "hold_request", place)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WRITER, proxy.dsn, cwd=ROOT
    )
    try:
        async with asyncio.timeout(20):
            await hold.seen()
    finally:
        process.kill()
        await process.wait()
    assert await reader.get_id_range("r", 0, 9) == [1, 2, 3]
    keys = redis_server.ask("KEYS", "*").split()[2::2]
    assert len(keys) == 3
    for key in keys:
        assert int(redis_server.ask("PTTL", key.decode()).strip(b":\r\n")) > 0
    assert await reader.delete_run("r") is True
    await nothing_left_but(redis_server)
    assert (await reader.get_meta("r")).state is SnapshotState.MISSING
    proxy.cut()
    hold.release()


async def test_what_somebody_else_wrote_is_no_run(
    reader: SearchResultSnapshotPort, redis_server: RespServer
) -> None:
    for wrong in (("SET", RUN, "hello"), ("RPUSH", RUN, "hello")):
        redis_server.ask(*wrong)
        with pytest.raises(BackendError, match="somebody else writes"):
            await reader.get_id_range("r", 0, 1)
        with pytest.raises(BackendError, match="somebody else writes"):
            await reader.get_meta("r")
        await reader.put_run("r", "f", [1])
        assert await reader.get_id_range("r", 0, 1) == [1]
        assert await reader.delete_run("r")
