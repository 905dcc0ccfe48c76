"""A whole application, over real uvicorn, while its Redis is down at start, dies and comes back
under load, and has its clock put on and back by an hour."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI

from forze.application.contracts.cache import CacheSpec, L1Spec
from forze.application.contracts.dlock import DistributedLockSpec
from forze.application.contracts.document import DocumentSpec, DocumentWriteTypes
from forze.application.contracts.idempotency import IdempotencySpec
from forze.application.contracts.resilience import RateLimitStrategy, ResiliencePolicy
from forze.application.execution import (
    DepsPlan,
    ExecutionRuntime,
    LifecyclePlan,
    ResilienceDepsModule,
)
from forze.domain.models import BaseDTO, CreateDocumentCmd, Document, ReadDocument
from forze.testing.servers import ValkeyServer
from forze.testing.serving import client_of
from forze_fastapi import (
    RateLimit,
    attach_document_endpoints,
    attach_health,
    register_exception_handlers,
    runtime_lifespan,
)
from forze_postgres import (
    PostgresClient,
    PostgresDepsModule,
    PostgresDocumentConfig,
    postgres_lifecycle_step,
)
from forze_redis import (
    RedisCacheConfig,
    RedisClient,
    RedisConfig,
    RedisDepsModule,
    RedisDistributedLockConfig,
    RedisIdempotencyConfig,
    redis_lifecycle_step,
    redis_rate_limit_store,
)

WITHIN = 20.0
HOUR = 3600

TABLE = """
CREATE TABLE notes (id uuid PRIMARY KEY, rev bigint NOT NULL, created_at timestamptz NOT NULL,
    last_update_at timestamptz NOT NULL, text text NOT NULL)
"""


class Note(Document):
    text: str


class NoteCreate(CreateDocumentCmd):
    text: str


class NoteUpdate(BaseDTO):
    text: str | None = None


class NoteRead(ReadDocument):
    text: str


NOTES = DocumentSpec(
    name="notes",
    read=NoteRead,
    write=DocumentWriteTypes(domain=Note, create_cmd=NoteCreate, update_cmd=NoteUpdate),
    cache=CacheSpec(name="notes", l1=L1Spec(ttl=timedelta(seconds=60))),
)
ONCE = IdempotencySpec(name="notes")
JOBS = DistributedLockSpec(name="jobs", ttl=timedelta(seconds=5))
LIMITED = ResiliencePolicy(rate_limit=RateLimitStrategy(permits=5, per=timedelta(seconds=5)))


def application(postgres_dsn: str, redis_dsn: str) -> FastAPI:
    redis = RedisClient()
    modules = (
        PostgresDepsModule(
            client=PostgresClient(),
            rw_documents={
                "notes": PostgresDocumentConfig(read=("public", "notes"), write=("public", "notes"))
            },
        ),
        RedisDepsModule(
            client=redis,
            caches={"notes": RedisCacheConfig(namespace="out:notes", invalidation_push=True)},
            idempotency=RedisIdempotencyConfig(namespace="out:once"),
            dlocks={"jobs": RedisDistributedLockConfig(namespace="out:locks")},
        ),
        ResilienceDepsModule(
            policies={"limited": LIMITED}, rate_limit_store=redis_rate_limit_store(redis)
        ),
    )
    config = RedisConfig(require_at_start=False, socket_timeout=0.5, connect_timeout=0.5)
    runtime = ExecutionRuntime(
        deps=DepsPlan.from_modules(*modules),
        lifecycle=LifecyclePlan.from_steps(
            postgres_lifecycle_step(dsn=postgres_dsn),
            redis_lifecycle_step(dsn=redis_dsn, config=config),
        ),
        specs=[NOTES, ONCE, JOBS],
    )
    app = FastAPI(lifespan=runtime_lifespan(runtime))
    register_exception_handlers(app)
    attach_health(app, runtime, required=["postgres"], fresh_for=timedelta(milliseconds=1))
    router = APIRouter(prefix="/notes")
    attach_document_endpoints(router, document=NOTES, ctx_dep=runtime.get_context, idempotency=ONCE)
    app.include_router(router)

    @app.get("/limited", dependencies=[Depends(RateLimit("limited", ctx_dep=runtime.get_context))])
    async def limited() -> None:
        return None

    @app.post("/job")
    async def job() -> int:
        async with runtime.get_context().dlock_scope(JOBS).scope("job") as lock:
            return lock.token

    return app


@asynccontextmanager
async def served(postgres_dsn: str, valkey: ValkeyServer) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(application(postgres_dsn, valkey.dsn)) as client:
        yield client


@pytest.fixture
async def notes(postgres_dsn: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    connection = await asyncpg.connect(postgres_dsn)
    await connection.execute(TABLE)
    yield connection
    await connection.close()


async def post(client: httpx.AsyncClient, text: str, key: str) -> httpx.Response:
    return await client.post("/notes", json={"text": text}, headers={"Idempotency-Key": key})


async def readiness(client: httpx.AsyncClient) -> tuple[int, str]:
    answer = await client.get("/readyz")
    return answer.status_code, answer.json()["status"]


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(WITHIN):
        while not await condition():
            await asyncio.sleep(0.02)


async def answered(client: httpx.AsyncClient, path: str, status: int) -> bool:
    return (await client.get(path)).status_code == status


async def is_ready(client: httpx.AsyncClient) -> bool:
    return await readiness(client) == (200, "ok")


async def test_down_at_start_it_serves_from_the_database_and_says_so(
    postgres_dsn: str, notes: asyncpg.Connection[Any], own_valkey: ValkeyServer
) -> None:
    note = uuid4()
    await notes.execute("INSERT INTO notes VALUES ($1, 1, now(), now(), 'there before')", note)
    own_valkey.kill()
    async with served(postgres_dsn, own_valkey) as client:
        assert await readiness(client) == (200, "degraded")
        assert (await client.get(f"/notes/{note}")).json()["text"] == "there before"
        refused = await post(client, "new", "k1")
        assert refused.status_code == 503
        assert refused.headers["Content-Type"] == "application/problem+json"
        assert 1 <= int(refused.headers["Retry-After"]) <= 60
        assert "127.0.0.1" not in refused.text, "nothing of the inside"
        assert await notes.fetchval("SELECT count(*) FROM notes") == 1, "a refusal writes nothing"

        own_valkey.start()
        await until(lambda: is_ready(client))
        created = await post(client, "new", "k1")
        assert created.status_code == 201
        assert (await post(client, "new", "k1")).json() == created.json()
        assert await notes.fetchval("SELECT count(*) FROM notes") == 2
        for _ in range(3):
            assert (await client.get(f"/notes/{note}")).status_code == 200
        assert b"out:notes" in own_valkey.ask("KEYS", "out:notes/cache/pointer/*")


class Load:
    """Readers and writers at work; what they were answered, by status."""

    def __init__(self, client: httpx.AsyncClient, ids: list[str]) -> None:
        self.client, self.ids = client, ids
        self.reads: Counter[int] = Counter()
        self.writes: Counter[int] = Counter()
        self.slowest_read = 0.0
        self.refused: list[httpx.Response] = []
        self.created: dict[str, str] = {}
        self.over = asyncio.Event()

    async def reader(self) -> None:
        while not self.over.is_set():
            for note in self.ids:
                began = time.monotonic()
                answer = await self.client.get(f"/notes/{note}")
                self.slowest_read = max(self.slowest_read, time.monotonic() - began)
                self.reads[answer.status_code] += 1
                assert answer.status_code != 200 or answer.json()["id"] == note

    async def writer(self) -> None:
        while not self.over.is_set():
            key = uuid4().hex
            while (answer := await post(self.client, key, key)).status_code != 201:
                self.writes[answer.status_code] += 1
                self.refused.append(answer)
                await asyncio.sleep(0.05)
            self.writes[201] += 1
            self.created[key] = answer.json()["id"]

    async def reached(self, condition: Callable[[], bool]) -> None:
        async def holds() -> bool:
            return condition()

        await until(holds)


async def test_dying_and_returning_under_load_fails_no_read_and_repeats_no_write(
    postgres_dsn: str, notes: asyncpg.Connection[Any], own_valkey: ValkeyServer
) -> None:
    async with served(postgres_dsn, own_valkey) as client:
        ids = [(await post(client, "read", f"r{n}")).json()["id"] for n in range(10)]
        load = Load(client, ids)
        async with asyncio.TaskGroup() as group:
            for each in (load.reader, load.reader, load.reader, load.writer, load.writer):
                group.create_task(each())
            await load.reached(lambda: load.writes[201] >= 5 and load.reads[200] >= 100)
            own_valkey.kill()
            before = load.reads[200]
            await load.reached(lambda: load.writes[503] >= 3 and load.reads[200] >= before + 100)
            assert await readiness(client) == (200, "degraded")
            own_valkey.start()
            written = load.writes[201]
            await load.reached(lambda: load.writes[201] >= written + 5)
            await until(lambda: is_ready(client))
            load.over.set()
        assert set(load.reads) == {200}, "no read failed"
        assert load.slowest_read < 5.0
        assert set(load.writes) <= {201, 503}
        assert all(1 <= int(each.headers["Retry-After"]) <= 60 for each in load.refused)
        rows = await notes.fetch("SELECT id::text, text FROM notes WHERE text <> 'read'")
        assert {row["text"]: row["id"] for row in rows} == load.created
        assert len(rows) == len(load.created), "each key made one document, whatever was answered"


def put_clock(valkey: ValkeyServer, seconds: int) -> None:
    """What a server whose clock was put on by ``seconds`` (back, where negative) has: everything
    it wrote down is by so much older, and ends by so much sooner."""
    now = time.time()

    touched: set[str] = set()

    def moved(found: re.Match[str]) -> str:
        number, unit = int(found[0]), 10 ** (len(found[0]) - 10)
        if abs(number / unit - now) > 2 * HOUR:
            return found[0]
        touched.add(key)
        return str(number - seconds * unit)

    def shifted(value: str) -> str:
        return re.sub(r"(?<!\d)(\d{13}|\d{16})(?!\d)", moved, value)

    def ask(*command: str) -> list[str]:
        lines = valkey.ask(*command).decode().split("\r\n")
        return [line for line in lines if not line.startswith(("*", "$"))][:-1]

    for key in ask("KEYS", "out:once*") + ask("KEYS", "out:locks*") + ask("KEYS", "*limited*"):
        left_ms = int(ask("PTTL", key)[0].lstrip(":"))
        if ask("TYPE", key)[0] == "+hash":
            fields = ask("HGETALL", key)
            for name, value in zip(fields[::2], fields[1::2], strict=True):
                if name != "body":
                    valkey.ask("HSET", key, name, shifted(value))
        if left_ms >= 0:
            valkey.ask("PEXPIRE", key, str(left_ms - seconds * 1000))
    assert any("limited" in each for each in touched), "the bucket has its time, at least"


@pytest.mark.parametrize("seconds", [HOUR, -HOUR], ids=["on", "back"])
async def test_a_clock_that_is_put_on_or_back_by_an_hour_stops_nobody(
    postgres_dsn: str, notes: asyncpg.Connection[Any], own_valkey: ValkeyServer, seconds: int
) -> None:
    async with served(postgres_dsn, own_valkey) as client:
        created = await post(client, "once", "k1")
        path = f"/notes/{created.json()['id']}"
        await until(lambda: answered(client, "/limited", 429))
        token = (await client.post("/job")).json()
        assert (await client.get(path)).status_code == 200

        put_clock(own_valkey, seconds)
        again = await post(client, "once", "k1")
        assert (again.status_code, again.json()) == (201, created.json()), "kept for a day"
        assert (await post(client, "else", "k1")).status_code == 422
        assert (await client.post("/job")).json() > token, "tokens rise"
        assert (await client.get(path)).status_code == 200
        changed = await client.patch(path, json={"text": "changed", "rev": 1})
        assert changed.status_code == 200
        assert (await client.get(path)).json()["text"] == "changed"

        await until(lambda: answered(client, "/limited", 200))
        await until(lambda: answered(client, "/limited", 429))
        refused = await client.get("/limited")
        assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1"), "not an hour"
