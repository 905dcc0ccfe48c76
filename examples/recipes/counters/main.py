"""Tells the story: counting together, a stock, a lost answer, ids by blocks, killed workers."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

from worker import NAMESPACE, ORDERS, STOCK, build_runtime

from forze.application.execution import ExecutionContext
from forze.errors import BackendError, ValidationError
from forze.testing.proxy import RespProxy, script
from forze.testing.servers import ValkeyServer
from forze_redis import RedisClient
from forze_redis.counter import COUNT

WORKER = Path(__file__).with_name("worker.py")


def say(text: str) -> None:
    """A line of the story."""
    print(text, flush=True)


async def together(one: ExecutionContext, other: ExecutionContext) -> None:
    """A thousand increments at once, over two processes' worth of clients."""
    ports = [ctx.counter(ORDERS) for ctx in (one, other)]
    numbers = await asyncio.gather(*(ports[n % 2].incr() for n in range(1_000)))
    assert sorted(numbers) == list(range(1, 1_001))
    block = await ports[0].allocate(10)
    say(f"1,000 increments at once: {len(set(numbers)):,} different numbers; then a block: {block}")


async def stock(ctx: ExecutionContext) -> None:
    """Twenty customers, three pieces."""
    left = ctx.counter(STOCK)
    await left.reset("tea", 3)
    answers = await asyncio.gather(*(left.decr("tea") for _ in range(20)), return_exceptions=True)
    sold = sum(isinstance(each, int) for each in answers)
    refused = next(each for each in answers if isinstance(each, ValidationError))
    say(f"20 customers, 3 in stock: {sold} sold, {await left.get('tea')} left")
    say(f"the others: {refused}")


async def lost_answer(redis_dsn: str) -> None:
    """The server counts, and the answer never arrives."""
    place = urlsplit(redis_dsn)
    async with RespProxy(place.port or 6379, place.hostname or "127.0.0.1") as proxy:
        between = f"redis://127.0.0.1:{proxy.port}{place.path}"
        async with build_runtime(between).scope() as ctx:
            counter = ctx.counter(ORDERS)
            proxy.drop_reply(script(COUNT))
            try:
                await counter.incr("points", by=5, operation_id="order 4711")
            except BackendError as error:
                say(f"an answer was lost: outcome {error.outcome!r}")
            again = await counter.incr("points", by=5, operation_id="order 4711")
            say(f"the same call under the same id: {again}; counted {await counter.get('points')}")
            assert again == 5


async def by_blocks(ctx: ExecutionContext) -> None:
    """How fast ids come, one by one and out of blocks."""
    counter, count = ctx.counter(ORDERS), 2_000
    began = time.perf_counter()
    for _ in range(count):
        await counter.incr("slow")
    single = (time.perf_counter() - began) / count
    ids = counter.allocator(block=1_000, suffix="fast")
    began = time.perf_counter()
    for _ in range(50 * count):
        await ids.next()
    blocks = (time.perf_counter() - began) / (50 * count)
    say(f"an id by incr(): {single * 1e6:.0f} us; out of a block of 1,000: {blocks * 1e6:.1f} us")


async def killed(redis_dsn: str, ctx: ExecutionContext) -> None:
    """Three workers take ids, and are killed in the middle of it."""
    seen: list[int] = []

    async def run_and_kill(after: int) -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(WORKER), redis_dsn, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        try:
            printed = [await process.stdout.readline() for _ in range(after)]
            seen.extend(map(int, printed))
        finally:
            process.kill()
        rest = await process.stdout.read()
        seen.extend(int(line) for line in rest.splitlines(keepends=True) if line.endswith(b"\n"))
        await process.wait()

    await asyncio.gather(*(run_and_kill(after) for after in (500, 777, 1_234)))
    taken = await ctx.counter(ORDERS).get("ids")
    say(
        f"3 workers killed: {len(seen):,} ids printed, {len(seen) - len(set(seen))} of them twice, "
        f"{taken - len(seen):,} never used"
    )
    assert len(set(seen)) == len(seen)


@asynccontextmanager
async def swept(dsn: str) -> AsyncIterator[None]:
    """The recipe's keys, which go again."""
    async with await RedisClient().connect(dsn) as client:
        try:
            yield
        finally:
            keys = [key async for key in client.redis.scan_iter(f"{NAMESPACE}:*", count=1_000)]
            if keys:
                await client.call("UNLINK", *keys)


async def main() -> None:
    """Every step, on a server that is gone afterwards."""
    async with AsyncExitStack() as stack:
        dsn = os.environ.get("REDIS_DSN") or stack.enter_context(ValkeyServer()).dsn
        await stack.enter_async_context(swept(dsn))
        one = await stack.enter_async_context(build_runtime(dsn).scope())
        other = await stack.enter_async_context(build_runtime(dsn).scope())
        await together(one, other)
        await stock(one)
        await lost_answer(dsn)
        await by_blocks(one)
        await killed(dsn, one)


if __name__ == "__main__":
    logging.getLogger("forze").setLevel(logging.CRITICAL)  # the story tells it
    asyncio.run(main())
