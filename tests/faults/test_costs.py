"""What a hit, a miss and a write cost, counted by the server; and that misses collapse."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from tests.faults.world import Replica, ask

from forze.testing.servers import RespServer, ValkeyServer


def evaluated(server: RespServer) -> int:
    """Script calls since the counters were reset; our clients send nothing else per read."""
    info = ask(server, "INFO", "commandstats")
    assert isinstance(info, bytes)
    calls = {
        line.split(b":")[0]: int(line.split(b"calls=")[1].split(b",")[0])
        for line in info.splitlines()
        if line.startswith(b"cmdstat_")
    }
    return sum(calls.get(b"cmdstat_" + name, 0) for name in (b"evalsha", b"eval", b"fcall"))


async def commands(server: RespServer, work: Callable[[], Awaitable[Any]]) -> int:
    ask(server, "CONFIG", "RESETSTAT")
    await work()
    return evaluated(server)


@pytest.mark.parametrize("callers", [1, 32])
async def test_commands_per_read_and_write(
    pair: tuple[Replica, Replica], redis_server: RespServer, callers: int
) -> None:
    """P8: one command per hit, two per miss and per update."""
    a, _ = pair
    products = [await a.create(price) for price in range(callers)]

    async def everybody(work: Callable[[Any], Awaitable[Any]]) -> None:
        await asyncio.gather(*(work(each) for each in products))

    assert await commands(redis_server, lambda: everybody(a.price)) == 2 * callers
    for _ in range(3):
        assert await commands(redis_server, lambda: everybody(a.price)) == callers
    assert a.stats.collapsed == 0
    updates = await commands(redis_server, lambda: everybody(lambda each: a.reprice(each, 99)))
    assert updates == 2 * callers
    ids = [each.id for each in products]
    assert await commands(redis_server, lambda: a.query.get_many(ids)) == 2
    assert await commands(redis_server, lambda: a.query.get_many(ids)) == 1


async def test_create_costs_nothing(one: Replica, valkey: ValkeyServer) -> None:
    """P8: a new document cannot have been cached."""
    assert await commands(valkey, one.create) == 0


async def test_get_many_of_more_than_a_batch(one: Replica, valkey: ValkeyServer) -> None:
    """P8: one command per hundred, one query for all that is not cached."""
    created = [await one.create(price) for price in range(250)]
    ids = [each.id for each in created]
    await one.query.get_many(ids[:50])
    reads = one.stats.source_reads
    found = await one.query.get_many(ids * 2)
    assert [each.price for each in found] == list(range(250)) * 2
    assert one.stats.source_reads == reads + 1
    assert await commands(valkey, lambda: one.query.get_many(ids)) == 3


WORKER = """
import asyncio, sys
from forze_redis import RedisConfig
from tests.faults.world import replica

async def main(postgres_dsn, port, document, callers):
    async with replica(postgres_dsn, int(port)) as mine:
        print("ready", flush=True)
        sys.stdin.readline()
        prices = await asyncio.gather(*(mine.query.get(document) for _ in range(int(callers))))
        print(len(prices), mine.stats.source_reads, flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_cold_hot_key_is_loaded_once_by_the_fleet(
    one: Replica, postgres_dsn: str, valkey: ValkeyServer
) -> None:
    """P7: four processes with 200 callers each, one load."""
    product = await one.create(price=10)
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", WORKER, postgres_dsn, str(valkey.port), str(product.id), "200",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )
        for _ in range(4)
    ]  # fmt: skip
    try:
        async with asyncio.timeout(30):
            for each in processes:
                assert each.stdout is not None
                assert await each.stdout.readline() == b"ready\n"
            outputs = await asyncio.gather(*(each.communicate(b"\n") for each in processes))
    finally:
        for each in processes:
            if each.returncode is None:
                each.kill()
                await each.wait()
    loads = [line.split() for line, _ in outputs]
    assert [int(answered) for answered, _ in loads] == [200] * 4
    assert sum(int(reads) for _, reads in loads) == 1
