"""The document on Redis caching, passage by passage as it is written there, on a real Valkey.

What a passage leaves to its reader (`router`, `expensive_computation`, `user_crud`, ...) is given
to it; nothing in it is changed.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import CoroutineType
from typing import Any

import pytest
from celery import Celery
from fastapi import APIRouter, FastAPI, HTTPException
from pydantic import BaseModel
from tests.integration.application import core, importable

from forze.testing.servers import ValkeyServer
from forze.testing.serving import client_of

SETTINGS = """
REDIS_CONNECTION_URL=redis://localhost:6379
REDIS_POOL_SIZE=5
REDIS_SOCKET_TIMEOUT=10
REDIS_DEFAULT_TTL=3600  # Default expiration in seconds
"""

LIFESPAN = """
async def lifespan(_app: FastAPI):
    # Startup
    await redis_manager.initialize_async()

    yield

    # Shutdown
    await redis_manager.close()
"""

ASYNC = """
from app.core.redis import redis_manager

@router.get("/cached-data")
async def get_cached_data(key: str):
    # Get from cache
    cached = await redis_manager.get_async(key)
    if cached:
        return {"data": cached, "source": "cache"}

    # Compute and cache
    data = expensive_computation()
    await redis_manager.set_async(key, data, ex=3600)
    return {"data": data, "source": "computed"}
"""

SYNC = """
from app.core.redis import redis_manager

@celery_app.task
def process_data(key: str):
    # Get from cache
    cached = redis_manager.get_sync(key)
    if cached:
        return cached

    # Process and cache
    result = heavy_processing()
    redis_manager.set_sync(key, result, ex=3600)
    return result
"""

API_RESPONSES = """
import json
from app.core.redis import redis_manager

async def get_user_profile(user_id: int, db: AsyncSession):
    cache_key = f"user:profile:{user_id}"

    # Try cache first
    cached = await redis_manager.get_async(cache_key)
    if cached:
        return json.loads(cached)

    # Query database
    user = await user_crud.get_by_id(db, user_id)
    if user:
        # Cache for 5 minutes
        await redis_manager.set_async(
            cache_key,
            json.dumps(user.dict()),
            ex=300
        )

    return user
"""

INVALIDATION = """
async def update_user_profile(user_id: int, data: dict, db: AsyncSession):
    # Update database
    user = await user_crud.update(db, user_id, data)

    # Invalidate cache
    await redis_manager.delete_async(f"user:profile:{user_id}")

    return user
"""

PATTERN_INVALIDATION = """
async def clear_user_caches(user_id: int):
    # Delete all caches for a user
    await redis_manager.delete_pattern_async(f"user:{user_id}:*")
"""

RATE_LIMITING = """
from fastapi import HTTPException

async def check_rate_limit(user_id: int, limit: int = 100, window: int = 60):
    key = f"rate_limit:{user_id}"

    current = await redis_manager.get_async(key)
    if current and int(current) >= limit:
        raise HTTPException(status_code=429, detail="Rate limit exceeded")

    # Increment counter
    client = await redis_manager.get_async_client()
    pipe = client.pipeline()
    pipe.incr(key)
    pipe.expire(key, window)
    await pipe.execute()
"""

SESSIONS = """
import secrets
import json

async def create_session(user_id: int, data: dict) -> str:
    session_id = secrets.token_urlsafe(32)
    session_key = f"session:{session_id}"

    session_data = {
        "user_id": user_id,
        **data
    }

    # Store session for 24 hours
    await redis_manager.set_async(
        session_key,
        json.dumps(session_data),
        ex=86400
    )

    return session_id

async def get_session(session_id: str) -> dict | None:
    session_key = f"session:{session_id}"
    data = await redis_manager.get_async(session_key)

    if data:
        return json.loads(data)
    return None
"""

HEALTH = """
@router.get("/health/redis")
async def redis_health():
    try:
        await redis_manager.async_test_connection()
        return {"status": "healthy"}
    except Exception as e:
        return {"status": "unhealthy", "error": str(e)}
"""

DIRECT = """
async def direct():
    client = await redis_manager.get_async_client()

    # Use Redis commands directly
    await client.hset("user:1", mapping={"name": "John", "email": "john@example.com"})
    user_data = await client.hgetall("user:1")
    return user_data
"""

METHODS = {
    "get_{}": ["key"],
    "set_{}": ["key", "value", "ex=None"],
    "delete_{}": ["*keys"],
    "delete_pattern_{}": ["pattern"],
    "{}_test_connection": [],
}


class AsyncSession:
    """The reader's database."""

    def __init__(self) -> None:
        self.rows: dict[int, User] = {1: User(name="Ann")}
        self.asked = 0


class User(BaseModel):
    name: str

    def dict(self, **_: Any) -> dict[str, Any]:  # as the document calls it
        return self.model_dump()


class UserCrud:
    """What the reader does with it."""

    async def get_by_id(self, db: AsyncSession, user_id: int) -> User | None:
        db.asked += 1
        return db.rows.get(user_id)

    async def update(self, db: AsyncSession, user_id: int, data: dict[str, Any]) -> User:
        db.rows[user_id] = User(**data)
        return db.rows[user_id]


Passage = Callable[..., dict[str, Any]]


@pytest.fixture
def written(valkey_dsn: str, tmp_path: Path) -> Iterator[Passage]:
    """Runs passages as one module, with the names that they leave to their reader."""

    def run(*passages: str, **given: Any) -> dict[str, Any]:
        names = {"redis_manager": core("redis").redis_manager, "user_crud": UserCrud(),
                 "AsyncSession": AsyncSession, "FastAPI": FastAPI, **given}  # fmt: skip
        exec(compile("\n".join(passages), "the document", "exec"), names)
        return names

    with importable(tmp_path, valkey_dsn):
        yield run


@pytest.fixture
async def manager(written: Passage) -> AsyncIterator[Any]:
    """The manager that the passages use."""
    manager = core("redis").redis_manager
    yield manager
    await manager.close()


def test_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, valkey: ValkeyServer
) -> None:
    """Each line of the block is a setting, with the default that is written there."""
    from forze_redis.manager import RedisManager

    names = [line.partition("=")[0] for line in SETTINGS.split() if "=" in line]
    assert len(names) == 4
    for name in names:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    told = SETTINGS.replace("redis://localhost:6379", valkey.dsn)
    (tmp_path / ".env").write_text(told.replace("3600", "77"))
    manager = RedisManager()
    manager.set_sync("k", "v")
    assert 40 <= manager.get_sync_client().ttl("k") <= 77
    manager.close_sync()
    monkeypatch.setenv("REDIS_DEFAULT_TTL", "1000")  # the environment beats the file
    manager = RedisManager()
    manager.set_sync("k", "v")
    assert 900 <= manager.get_sync_client().ttl("k") <= 1000
    manager.close_sync()
    (tmp_path / ".env").unlink()
    for name in names[1:]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(names[0], valkey.dsn)
    manager = RedisManager()
    manager.set_sync("k", "v")
    assert 3500 <= manager.get_sync_client().ttl("k") <= 3600
    manager.close_sync()


@pytest.mark.parametrize("method", METHODS)
async def test_the_tables_of_methods(manager: Any, method: str) -> None:
    for kind in ("async", "sync"):
        bound = getattr(manager, method.format(kind))
        parameters = inspect.signature(bound).parameters.values()
        shown = [str(each).split(":")[0] for each in parameters]
        defaults = {
            each.name: each.default for each in parameters if each.default is not each.empty
        }
        assert shown == [each.split("=")[0] for each in METHODS[method]]
        assert defaults == ({"ex": None} if "ex=None" in METHODS[method] else {})
        assert inspect.iscoroutinefunction(bound) == (kind == "async")


async def test_every_method_both_ways(manager: Any) -> None:
    async def both(method: str, *args: Any) -> tuple[Any, Any]:
        answer = getattr(manager, method.format("async"))(*args)
        assert isinstance(answer, CoroutineType)
        return await answer, getattr(manager, method.format("sync"))(*args)

    assert await both("{}_test_connection") == (True, True)
    assert await both("get_{}", "k") == (None, None)
    await both("set_{}", "k", "v")
    assert await both("get_{}", "k") == ("v", "v")
    assert 3500 <= manager.get_sync_client().ttl("k") <= 3600
    assert await manager.delete_async("k", "none") == 1
    assert manager.delete_sync("k", "none") == 0
    assert await both("delete_{}") == (0, 0)
    for kind in ("async", "sync"):
        for key in ("user:1:a", "user:1:b", "user:10:a"):
            manager.set_sync(key, "v", ex=60)
        deleted = getattr(manager, f"delete_pattern_{kind}")("user:1:*")
        assert (await deleted if kind == "async" else deleted) == 2
        assert await both("get_{}", "user:10:a") == ("v", "v")


async def test_initialization_and_async_operations(written: Passage, manager: Any) -> None:
    computed = iter(["first", "second"])
    router = APIRouter()
    names = written(LIFESPAN, ASYNC, HEALTH, router=router,
                    expensive_computation=lambda: next(computed))  # fmt: skip
    app = FastAPI(lifespan=asynccontextmanager(names["lifespan"]))
    app.include_router(router)
    async with client_of(app) as client:
        data = [await client.get("/cached-data", params={"key": "k"}) for _ in range(2)]
        assert (await client.get("/health/redis")).json() == {"status": "healthy"}
    assert [each.json() for each in data] == [
        {"data": "first", "source": "computed"},
        {"data": "first", "source": "cache"},
    ]


async def test_health_check_without_redis(own_valkey: ValkeyServer, tmp_path: Path) -> None:
    with importable(tmp_path, own_valkey.dsn):
        manager = core("redis").redis_manager
        router = APIRouter()
        exec(HEALTH, {"router": router, "redis_manager": manager})
        app = FastAPI()
        app.include_router(router)
        async with client_of(app) as client:
            assert (await client.get("/health/redis")).json() == {"status": "healthy"}
            own_valkey.kill()
            answer = (await client.get("/health/redis")).json()
            own_valkey.start()
            async with asyncio.timeout(20):
                while (await client.get("/health/redis")).json() != {"status": "healthy"}:
                    await asyncio.sleep(0.05)
        assert answer["status"] == "unhealthy"
        assert answer["error"]
        await manager.close()


async def test_sync_operations(written: Passage, manager: Any) -> None:
    computed = iter(["first", "second"])
    celery_app = Celery("document", set_as_current=False)
    names = written(SYNC, celery_app=celery_app, heavy_processing=lambda: next(computed))
    task = names["process_data"]
    assert [task.apply(("k",)).get(), task.apply(("k",)).get()] == ["first", "first"]
    assert await manager.get_async("k") == "first"


async def test_api_responses_and_invalidation(written: Passage, manager: Any) -> None:
    """As written: the first answer is a model, the second a dict of the same."""
    names, db = written(API_RESPONSES, INVALIDATION), AsyncSession()
    profile, update = names["get_user_profile"], names["update_user_profile"]
    assert await profile(1, db) == User(name="Ann")
    assert await profile(1, db) == {"name": "Ann"}
    assert db.asked == 1
    assert 240 <= manager.get_sync_client().ttl("user:profile:1") <= 300
    assert await update(1, {"name": "Anna"}, db) == User(name="Anna")
    assert await profile(1, db) == User(name="Anna")
    assert [await profile(2, db), await profile(2, db), db.asked] == [None, None, 4]


async def test_pattern_based_invalidation(written: Passage, manager: Any) -> None:
    clear = written(PATTERN_INVALIDATION)["clear_user_caches"]
    client = await manager.get_async_client()
    await client.mset({f"user:{number % 2 + 1}:{number}": "v" for number in range(3000)})
    await clear(1)
    left = manager.get_sync_client().keys("user:*")
    assert len(left) == 1500
    assert {each[:7] for each in left} == {"user:2:"}


async def test_rate_limiting(written: Passage, manager: Any) -> None:
    """As written it works for calls one after another, and lets any number at once through."""
    check = written(RATE_LIMITING)["check_rate_limit"]
    for _ in range(3):
        await check(1, limit=3)
    with pytest.raises(HTTPException) as refused:
        await check(1, limit=3)
    assert refused.value.status_code == 429
    ours = core("rate_limit").check_rate_limit
    at_once = {
        each: await asyncio.gather(*(each(2, limit=10) for _ in range(200)), return_exceptions=True)
        for each in (check, ours)
    }
    assert at_once[check].count(None) > 10
    assert at_once[ours].count(None) == 10


async def test_session_storage(written: Passage, manager: Any) -> None:
    names = written(SESSIONS)
    for create, get in (
        (names["create_session"], names["get_session"]),
        (core("sessions").create_session, core("sessions").get_session),
    ):
        session_id = await create(1, {"theme": "dark"})
        assert await get(session_id) == {"user_id": 1, "theme": "dark"}
        assert await get("nobody's") is None
    assert json.loads(await manager.get_async(f"session:{await names['create_session'](1, {})}"))


async def test_direct_client_access(written: Passage, manager: Any) -> None:
    assert await written(DIRECT)["direct"]() == {"name": "John", "email": "john@example.com"}


async def test_threads_tasks_and_requests_at_once(written: Passage, manager: Any) -> None:
    """Both kinds of methods on one manager, from threads and an event loop together."""

    def work(number: int) -> str | None:
        manager.set_sync(f"sync:{number}", str(number))
        value: str | None = manager.get_sync(f"sync:{number}")
        return value

    async def request(number: int) -> str | None:
        await manager.set_async(f"async:{number}", str(number))
        value: str | None = await manager.get_async(f"async:{number}")
        return value

    numbers = range(40)
    answers = await asyncio.gather(
        *(asyncio.to_thread(work, number) for number in numbers), *map(request, numbers)
    )
    assert answers == [str(number) for number in numbers] * 2
