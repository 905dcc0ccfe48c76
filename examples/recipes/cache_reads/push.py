"""Push: the server tells each process what changed, so that an L1 may keep entries for a minute.

Two replicas in two processes. This one writes; the other, started from this very file, serves
the product from its L1 and says when it saw the new price.
"""

from __future__ import annotations

import asyncio
import logging
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import NamedTuple

from app import PRODUCT_SPEC, SCHEMA, ProductCreate, ProductRead, ProductUpdate
from servers import Servers
from stage import Replica, perform, replica, say, title, until

from forze.application.contracts.cache import CacheSpec, L1Spec
from forze_redis import RedisCacheConfig

WRITES = 100
MINUTE = timedelta(seconds=60)

HOT = replace(PRODUCT_SPEC, cache=CacheSpec(name="products", l1=L1Spec(ttl=MINUTE)))
PUSHED = RedisCacheConfig(namespace="app:products", invalidation_push=True)


async def run(at: Servers) -> None:
    title(f"Push: an L1 of {MINUTE.total_seconds():g} s, two replicas in two processes")
    async with replica(at, cache=PUSHED) as here, other_process(at) as other:
        docs = here.ctx.document.command(HOT)
        product = await docs.create(ProductCreate(name="Widget", price=0))
        say(f"process {os.getpid()} writes, process {other.pid} reads from its L1")

        late_ms: list[float] = []
        for price in range(1, WRITES + 1):
            product, seen_ms, acknowledged_ms = await _seen(here, other, product, price)
            late_ms.append(max(0.0, seen_ms - acknowledged_ms))
        median, p99 = statistics.median(late_ms), sorted(late_ms)[WRITES * 99 // 100 - 1]
        say(
            f"{WRITES} writes: seen by the other {median:.2f} ms after their acknowledgement "
            f"(median), {p99:.2f} ms (p99)"
        )
        say(f"  {late_ms.count(0.0)} of them before it")

        await other.ask(f"keep {product.id}")
        connection, flushes = await other.ask("connection"), int(await other.ask("flushes"))
        cut = time.monotonic()
        await here.redis.call("CLIENT", "KILL", "ID", connection)
        flushed = float(await other.ask(f"flushed {flushes}")) - cut
        say(f"its connection cut: {flushed * 1000:.2f} ms later its L1 was empty")

        product, seen_ms, acknowledged_ms = await _seen(here, other, product, WRITES + 1)
        say(f"connected again: the next write seen after {seen_ms:.2f} ms")
        order = "before" if seen_ms < acknowledged_ms else "after"
        say(f"  {order} its acknowledgement, which took {acknowledged_ms:.2f} ms")
        await docs.kill(product.id)


class Seen(NamedTuple):
    """A write, and the times from its beginning until the other process read it and until its
    acknowledgement. It may be read as soon as it is committed, so either comes first."""

    product: ProductRead
    seen_ms: float
    acknowledged_ms: float


async def _seen(here: Replica, other: OtherProcess, product: ProductRead, price: int) -> Seen:
    """Write ``price``, and see the other, whose L1 has the old one, read it."""
    await other.ask(f"keep {product.id}")
    seen = asyncio.create_task(other.ask(f"see {product.id} {price}"))
    await asyncio.sleep(0.005)  # it polls by now
    docs, began = here.ctx.document.command(HOT), time.monotonic()
    product = await docs.update(product.id, product.rev, ProductUpdate(price=price))
    acknowledged = time.monotonic()
    return Seen(product, (float(await seen) - began) * 1000, (acknowledged - began) * 1000)


# -- the other process -------------------------------------------------------


class OtherProcess:
    """A replica in another process: asked in lines, answers in lines."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.pid = process.pid
        self._process = process

    async def ask(self, question: str) -> str:
        """Its answer; raises RuntimeError if it is gone, TimeoutError after ten seconds."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{question}\n".encode())
        async with asyncio.timeout(10):
            answer = await self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the other process is gone; it was asked {question!r}")
        return answer.decode().strip()


@asynccontextmanager
async def other_process(at: Servers) -> AsyncIterator[OtherProcess]:
    """A process that answers until its standard input ends."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        __file__,
        at.pg_dsn,
        at.redis_dsn,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "RECIPE_SCHEMA": SCHEMA},
        start_new_session=True,  # Ctrl-C is for this one, which then ends the other
    )
    try:
        yield OtherProcess(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            async with asyncio.timeout(5):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


async def answer(at: Servers) -> None:
    """The other process: answers each line on standard input, until there are no more."""
    logging.getLogger("forze.redis").setLevel(logging.ERROR)  # that it is cut off is our doing
    async with replica(at, cache=PUSHED) as me:
        while line := await asyncio.to_thread(sys.stdin.readline):
            question, *about = line.split()
            print(await _ANSWERS[question](me, *about), flush=True)


async def _keep(me: Replica, id: str) -> str:
    """Read until the L1 answers."""
    query = me.ctx.document.query(HOT)
    before = me.ctx.l1_stats()[HOT.name].hits

    async def kept() -> bool:
        await query.get(id)
        return me.ctx.l1_stats()[HOT.name].hits > before

    await until(kept)
    return "kept"


async def _see(me: Replica, id: str, price: str) -> float:
    """Read until the price is there; when it was."""

    async def there() -> bool:
        return (await me.ctx.document.query(HOT).get(id)).price == int(price)

    return await until(there)


async def _flushed(me: Replica, before: str) -> float:
    """Look until the L1 has been flushed once more; when it was."""

    async def once_more() -> bool:
        return await _flushes(me) > int(before)

    return await until(once_more)


async def _flushes(me: Replica) -> int:
    stats = me.ctx.document.query(HOT).stats()
    return 0 if stats is None else stats.flushes


async def _connection(me: Replica) -> int:
    number: int = await me.redis.call("CLIENT", "ID")
    return number


_ANSWERS: dict[str, Callable[..., Awaitable[object]]] = {
    "keep": _keep,
    "see": _see,
    "flushes": _flushes,
    "flushed": _flushed,
    "connection": _connection,
}


if __name__ == "__main__":
    if len(sys.argv) == 3:
        asyncio.run(answer(Servers(sys.argv[1], sys.argv[2], False, False)))
    else:
        sys.exit(perform(run))
