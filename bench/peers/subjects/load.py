"""Ours under load: one process, with as many kinds, tenants and replicas as it is told.

Settings beside the servers: ``tables`` are the document kinds, each with a namespace of its own
(default: ``products``); with ``tenants`` they have a ``tenant_id``, and reads bind it. ``l1`` is
an in-process tier: ``capacity``, ``store`` (``lru`` or ``tiny_lfu``), ``push``.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

import asyncpg
import hiredis
import redis.asyncio
from products import Product, ProductCreate, ProductRead, ProductUpdate
from work import SEED, work

from forze.application.contracts.cache import CacheSpec, L1Spec
from forze.application.contracts.document import DocumentSpec, DocumentWriteTypes
from forze.application.contracts.tenancy import bind_again, bind_tenant
from forze.application.execution import (
    DepsPlan,
    ExecutionContext,
    ExecutionRuntime,
    LifecyclePlan,
)
from forze.application.integrations.document import lru_l1_store, tiny_lfu_l1_store
from forze_postgres import (
    PostgresClient,
    PostgresConfig,
    PostgresDepsModule,
    PostgresDocumentConfig,
    postgres_lifecycle_step,
)
from forze_redis import RedisCacheConfig, RedisClient, RedisDepsModule, redis_lifecycle_step

AT_ONCE = 32
KEYS = 100_003
SLICE_SECONDS = 0.05
STORES = {"lru": lru_l1_store, "tiny_lfu": tiny_lfu_l1_store}

Key = tuple[int, str | None, Any]
"""Which kind, whose, which document."""


class Subject:
    """The process."""

    def __init__(self, stack: AsyncExitStack, settings: dict[str, Any]) -> None:
        self.stack, self.settings = stack, settings
        self.tables: list[str] = settings.get("tables", ["products"])
        self.tenants = bool(settings.get("tenants"))
        self.l1: dict[str, Any] | None = settings.get("l1")
        self.specs = [_spec(table, self.l1) for table in self.tables]
        self.database = PostgresClient()
        self.keys: list[Key] = []
        self.order: list[Key] = []
        self.replicas: list[ExecutionContext] = []

    @classmethod
    async def open(cls, settings: dict[str, Any]) -> Subject:
        """Connected, with the ids of every document known."""
        async with AsyncExitStack() as stack:
            self = cls(stack, settings)
            await self._find()
            database = postgres_lifecycle_step(
                dsn=settings["postgres"],
                client=self.database,
                config=PostgresConfig(min_size=1, max_size=8),
            )
            self.ctx = await self._runtime(database)
            self.stack = stack.pop_all()
        return self

    async def close(self) -> None:
        """Disconnect."""
        await self.stack.aclose()

    async def _find(self) -> None:
        connection = await asyncpg.connect(self.settings["postgres"])
        try:
            tenant = "tenant_id" if self.tenants else "NULL"
            for kind, table in enumerate(self.tables):
                rows = await connection.fetch(f"SELECT id, {tenant} AS tenant FROM {table}")
                self.keys += [
                    (kind, None if row["tenant"] is None else str(row["tenant"]), row["id"])
                    for row in rows
                ]
        finally:
            await connection.close()
        # Each document as likely as any other: nothing stays warm because it is popular.
        self.order = random.Random(SEED).choices(self.keys, k=KEYS)

    async def _runtime(self, *steps: Any) -> ExecutionContext:
        """A runtime with a connection of its own to the cache, over the one database."""
        client = RedisClient()
        push = bool(self.l1 and self.l1.get("push"))
        documents = {
            table: PostgresDocumentConfig(
                read=("public", table), write=("public", table), tenant_aware=self.tenants
            )
            for table in self.tables
        }
        caches = {
            table: RedisCacheConfig(
                namespace=f"bench:{table}", tenant_aware=self.tenants, invalidation_push=push
            )
            for table in self.tables
        }
        runtime = ExecutionRuntime(
            deps=DepsPlan.from_modules(
                PostgresDepsModule(client=self.database, rw_documents=documents),
                RedisDepsModule(client=client, caches=caches),
            ),
            lifecycle=LifecyclePlan.from_steps(
                *steps, redis_lifecycle_step(dsn=self.settings["valkey"], client=client)
            ),
            specs=self.specs if steps else (),
        )
        return await self.stack.enter_async_context(runtime.scope())

    # -- what one does -----------------------------------------------------------

    def _reading(self, ctx: ExecutionContext) -> Callable[[Key], Awaitable[Any]]:
        gets = [ctx.document.query(spec).get for spec in self.specs]

        async def get(key: Key) -> Any:
            return await gets[key[0]](key[2])

        async def get_of_tenant(key: Key) -> Any:
            with bind_tenant(key[1] or ""):
                return await gets[key[0]](key[2])

        return get_of_tenant if self.tenants else get

    def _announcing(self) -> Callable[[Key], Awaitable[Any]]:
        """What a write tells the cache, before its commit and after, without the write."""
        pointers = [self.ctx.cache(spec.cache).pointers("0" * 8) for spec in self.specs]
        numbers = iter(range(2**63))

        async def announce(key: Key) -> None:
            mine = pointers[key[0]]
            with bind_again(key[1]):
                address = mine.address(str(key[2]))
            write_id = f"{next(numbers):016x}"
            await mine.intend((address,), write_id)
            await mine.done((address,), write_id)

        return announce

    def _looking_up(self) -> Callable[[Key], Awaitable[Any]]:
        """The least that an awaited lookup can cost, on memory as scattered as the tier's."""
        kept = {key: ProductRead.model_construct(id=key[2]) for key in self.keys}

        async def get(key: Key) -> Any:
            return kept[key]

        return get

    def _doing(self, what: str) -> Callable[[Key], Awaitable[Any]]:
        return {
            "read": lambda: self._reading(self.ctx),
            "announce": self._announcing,
            "dict": self._looking_up,
        }[what]()

    async def do_size(self) -> int:
        """How many documents there are."""
        return len(self.keys)

    async def do_each(self, what: str, callers: int, count: int = 0) -> dict[str, float]:
        """``read`` or ``announce`` each document once, or the first ``count``."""
        one, keys = self._doing(what), self.keys[: count or None]
        began, spent = time.perf_counter(), time.process_time()
        await asyncio.gather(*(_in_turn(one, keys[at::callers]) for at in range(callers)))
        return {
            "reads": len(keys),
            "us": (time.perf_counter() - began) / len(keys) * 1e6,
            "cpu": (time.process_time() - spent) / len(keys) * 1e6,
        }

    async def do_fill(self) -> None:
        """Have every document cached, and kept in the process where there is a tier."""
        await self._fill(self.ctx)

    async def do_together(self) -> dict[str, float]:
        """Have every document read once, a hundred by a ``get_many``; its cost per document."""
        spent = time.process_time()
        await self._fill(self.ctx)
        cpu = (time.process_time() - spent) / len(self.keys) * 1e6
        return {"reads": len(self.keys), "cpu": cpu}

    async def _fill(self, ctx: ExecutionContext) -> None:
        queries = [ctx.document.query(spec) for spec in self.specs]
        together: dict[tuple[int, str | None], list[Any]] = {}
        for kind, tenant, pk in self.keys:
            together.setdefault((kind, tenant), []).append(pk)
        batches = [
            (of, ids[at : at + 100])
            for of, ids in together.items()
            for at in range(0, len(ids), 100)
        ]

        async def read(batch: tuple[tuple[int, str | None], list[Any]]) -> None:
            (kind, tenant), ids = batch
            with bind_again(tenant):
                await queries[kind].get_many(ids)

        for _ in range(2 if self.l1 else 1):  # what a miss stored is kept by the read after it
            await asyncio.gather(*(_in_turn(read, batches[at::AT_ONCE]) for at in range(AT_ONCE)))

    async def do_work(self, what: str, callers: int, seconds: float) -> dict[str, float]:
        """``read``, ``announce`` or ``dict`` for a while; ``kept`` is the share of reads that
        the process answered itself, ``astray`` how many went to the source: the server did not
        answer in time, and the figures are not those of hits."""
        one = self._doing(what)
        before, astray = self._kept(), self._astray()
        if self.l1 is None or what != "read":
            found = await work(one, self.order, callers, seconds)
        else:
            found = await _sliced(one, self.order, callers, seconds)
        return {
            **found,
            "kept": (self._kept() - before) / found["reads"],
            "astray": self._astray() - astray,
        }

    def _astray(self) -> int:
        stats = [self.ctx.document.query(spec).stats() for spec in self.specs]
        return sum(each.source_reads for each in stats if each is not None)

    def _kept(self) -> int:
        return sum(each.hits for each in self.ctx.l1_stats().values()) if self.l1 else 0

    async def do_idle(self, seconds: float) -> float:
        """Microseconds of processor time per second, while nothing is asked of the process."""
        spent = time.process_time()
        await asyncio.sleep(seconds)
        return (time.process_time() - spent) / seconds * 1e6

    # -- replicas ----------------------------------------------------------------

    async def do_replicas(self, count: int) -> None:
        """Have ``count`` runtimes in all beside the first one, each with a tier that is full."""
        while len(self.replicas) < count:
            ctx = await self._runtime()
            self.replicas.append(ctx)
            await self._fill(ctx)

    async def do_warm(self) -> None:
        """Have each replica keep every document again."""
        for ctx in self.replicas:
            await self._fill(ctx)

    async def do_heard(self) -> dict[str, float]:
        """Pushes heard by all replicas so far, and this process's processor time, in us."""
        stats = [ctx.document.query(spec).stats() for ctx in self.replicas for spec in self.specs]
        pushes = sum(each.pushes for each in stats if each is not None)
        return {"pushes": pushes, "cpu": time.process_time() * 1e6}

    # -- the bare protocol ---------------------------------------------------------

    async def do_record(self, what: str) -> int:
        """Take down the commands that ``what`` sends for each document, for :meth:`do_replay`.

        ``get`` is what one writes by hand: a ``GET`` of a value of the same size.
        """
        client = redis.asyncio.Redis.from_url(self.settings["valkey"])
        try:
            if what == "get":
                bodies = [key async for key in client.scan_iter("*/cache/body/*", count=1_000)]
                random.Random(SEED).shuffle(bodies)  # they came as they lie in memory
                self.recorded = [hiredis.pack_command(("GET", key)) for key in bodies]
            else:
                self.recorded = await self._overheard(client, what)
        finally:
            await client.aclose()
        return len(self.recorded)

    async def _overheard(self, client: redis.asyncio.Redis, what: str) -> list[bytes]:
        async with client.monitor() as monitor:
            doing = asyncio.create_task(self.do_each(what, 1))
            found: list[bytes] = []
            end = b"that was all"
            doing.add_done_callback(lambda _: asyncio.ensure_future(client.echo(end)))
            async for said in monitor.listen():
                if said["command"] == f"ECHO {end.decode()}":
                    break
                if said["client_type"] != "lua" and said["command"].startswith("EVALSHA "):
                    found.append(hiredis.pack_command(tuple(said["command"].split(" "))))
            await doing
        return found

    async def do_replay(self, depth: int, seconds: float) -> dict[str, float]:
        """Send what was recorded over one connection, ``depth`` commands at a time, awaiting
        their replies and looking at none. As little as a client can do."""
        batches = [
            b"".join(self.recorded[at : at + depth])
            for at in range(0, len(self.recorded) - depth + 1, depth)
        ]
        host, _, port = self.settings["valkey"].rpartition("/")[0].rpartition("/")[2].partition(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=2**20)
        parser, sent = hiredis.Reader(), 0
        began, spent = time.perf_counter(), time.process_time()
        try:
            while time.perf_counter() < began + seconds:
                for batch in batches[:16]:
                    writer.write(batch)
                    await _replies(reader, parser, depth)
                sent += depth * len(batches[:16])
                batches = batches[16:] + batches[:16]
        finally:
            writer.close()
        return {
            "reads": sent,
            "us": (time.perf_counter() - began) / sent * 1e6,
            "cpu": (time.process_time() - spent) / sent * 1e6,
        }


async def _replies(reader: asyncio.StreamReader, parser: hiredis.Reader, count: int) -> None:
    while count:
        parser.feed(await reader.read(2**18))
        while (reply := parser.gets()) is not False:
            if isinstance(reply, hiredis.ReplyError):
                raise reply
            count -= 1


async def _in_turn(one: Callable[[Any], Awaitable[Any]], these: Sequence[Any]) -> None:
    for each in these:
        await one(each)


async def _sliced(
    one: Callable[[Key], Awaitable[Any]], keys: Sequence[Key], callers: int, seconds: float
) -> dict[str, float]:
    """``work``, with the event loop's turn every so often: hits in process never give way, and a
    loop that stands still trusts nothing that it kept."""
    parts = []
    for part in range(max(1, round(seconds / SLICE_SECONDS))):
        at = part * 7_919 % len(keys)
        parts.append(await work(one, (*keys[at:], *keys[:at]), callers, SLICE_SECONDS))
        await asyncio.sleep(0.001)
    done = sum(part["reads"] for part in parts)
    return {
        "reads": done,
        "us": sum(part["us"] * part["reads"] for part in parts) / done,
        "cpu": sum(part["cpu"] * part["reads"] for part in parts) / done,
    }


def _spec(
    table: str, l1: dict[str, Any] | None
) -> DocumentSpec[ProductRead, ProductCreate, ProductUpdate]:
    kept = None
    if l1 is not None:
        kept = L1Spec(
            ttl=timedelta(minutes=30),
            capacity=l1["capacity"],
            store_factory=STORES[l1.get("store", "lru")],
        )
    return DocumentSpec(
        name=table,
        read=ProductRead,
        write=DocumentWriteTypes(
            domain=Product, create_cmd=ProductCreate, update_cmd=ProductUpdate
        ),
        cache=CacheSpec(name=table, ttl=timedelta(hours=2), l1=kept),
    )
