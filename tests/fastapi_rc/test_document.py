"""Each code passage of fastapi-rc's own README, as it stands there, against a real Valkey.

Only what its user would have is supplied: the database, the items, the address of the server.
The annotations are evaluated where they stand, as there, so there is no ``annotations`` import.
"""

import asyncio
import json
import random
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import pytest
from fakeredis import FakeAsyncRedis
from fastapi import APIRouter, Depends, FastAPI
from pydantic import BaseModel

from fastapi_rc import (
    CacheService,
    CacheServiceDep,
    RedisClient,
    build_cache_key,
    cachemanager,
    get_ttl_with_jitter,
    invalidate_pattern,
)
from forze.testing.servers import ValkeyServer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it would rather have another HTTP client
    from fastapi.testclient import TestClient


# -- what the user of the document has -----------------------------------------------


class User(BaseModel):
    id: str
    email: str
    name: str


class UserUpdate(BaseModel):
    name: str


class Item(BaseModel):
    id: int

    def json(self) -> str:  # type: ignore[override] # as models had it when the document was written
        return self.model_dump_json()


class Database:
    """Counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.name = "Ann"

    async def get_user(self, user_id: str) -> User:
        self.asked.append(f"user {user_id}")
        return User(id=user_id, email="ann@example.com", name=self.name)

    async def update_user(self, user_id: str, data: UserUpdate) -> User:
        self.name = data.name
        return User(id=user_id, email="ann@example.com", name=self.name)


@pytest.fixture
def db() -> Database:
    return Database()


@pytest.fixture
def router() -> APIRouter:
    return APIRouter()


@pytest.fixture
def app(router: APIRouter, valkey_dsn: str) -> FastAPI:
    """The first passage: the lifespan."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # Startup
        cachemanager.init(
            redis_url=valkey_dsn,
            max_connections=50,
            socket_timeout=5.0,
        )
        yield
        # Shutdown
        await cachemanager.close()

    return FastAPI(lifespan=lifespan)


@pytest.fixture
def served(app: FastAPI, router: APIRouter) -> Iterator[TestClient]:
    """The application, once the test has added its routes: to be entered by it."""
    client = TestClient(app)
    yield client
    client.close()


def begin(client: TestClient, router: APIRouter) -> TestClient:
    """With the routes that were declared since."""
    client.app.include_router(router)  # type: ignore[attr-defined]
    return client


# -- the passages ----------------------------------------------------------------------


def test_the_lifespan_opens_and_closes(
    served: TestClient, router: APIRouter, valkey: ValkeyServer
) -> None:
    @router.get("/available")
    async def available() -> list[bool]:
        return [cachemanager.is_available, await cachemanager.ping()]

    before = valkey.ask("CLIENT", "LIST").count(b"id=")
    with begin(served, router) as client:
        assert client.get("/available").json() == [True, True]
        assert valkey.ask("CLIENT", "LIST").count(b"id=") == before + 1
    assert not cachemanager.is_available
    assert valkey.ask("CLIENT", "LIST").count(b"id=") == before


def test_pattern_1_direct_redis(served: TestClient, router: APIRouter, db: Database) -> None:
    async def fetch_user_from_db(user_id: str) -> dict[str, Any]:
        return (await db.get_user(user_id)).model_dump()

    # Pattern 1: Direct Redis (full control)
    @router.get("/users/{user_id}")
    async def get_user(user_id: str, redis: RedisClient):  # type: ignore[no-untyped-def]
        cached = await redis.get(f"users:{user_id}")
        if cached:
            return {"user": json.loads(cached), "cached": True}
        user = await fetch_user_from_db(user_id)
        await redis.set(f"users:{user_id}", json.dumps(user), ex=300)
        return {"user": user, "cached": False}

    with begin(served, router) as client:
        first, second = client.get("/users/123").json(), client.get("/users/123").json()
    assert (first["cached"], second["cached"]) == (False, True)
    assert first["user"] == second["user"]
    assert db.asked == ["user 123"]


def test_pattern_2_cache_service(served: TestClient, router: APIRouter) -> None:
    fetched = []

    async def fetch_all_products_from_db() -> list[dict[str, Any]]:
        fetched.append("products")
        return [{"id": 1, "name": "lamp"}]

    # Pattern 2: CacheService (common patterns)
    @router.get("/products")
    async def list_products(cache: CacheServiceDep):  # type: ignore[no-untyped-def]
        products = await cache.get_or_set(
            identifier="all_products",
            factory=lambda: fetch_all_products_from_db(),  # noqa: PLW0108
            ttl=600,
        )
        return products  # noqa: RET504

    with begin(served, router) as client:
        answers = [client.get("/products").json() for _ in range(3)]
    assert answers == [[{"id": 1, "name": "lamp"}]] * 3
    assert fetched == ["products"]


def test_batch_operation(served: TestClient, router: APIRouter, valkey: ValkeyServer) -> None:
    items = [Item(id=1), Item(id=2)]

    @router.post("/batch")
    async def batch_operation(redis: RedisClient):  # type: ignore[no-untyped-def]
        # Pipeline for bulk operations
        async with redis.pipeline(transaction=False) as pipe:
            for item in items:
                pipe.set(f"item:{item.id}", item.json(), ex=300)
            await pipe.execute()
        # Pattern-based invalidation
        async for key in redis.scan_iter("users:123:*"):
            await redis.delete(key)

    for key in ("users:123:a", "users:123:b", "users:1234"):
        valkey.ask("SET", key, "1")
    with begin(served, router) as client:
        assert client.post("/batch").status_code == 200
    left = sorted(valkey.ask("KEYS", "*").split()[2::2])
    assert left == [b"item:1", b"item:2", b"users:1234"]
    assert valkey.ask("GET", "item:2").split(b"\r\n")[1] == b'{"id":2}'


def test_a_typed_service(served: TestClient, router: APIRouter, db: Database) -> None:
    @router.get("/users/{user_id}")
    async def get_user(user_id: str, redis: RedisClient):  # type: ignore[no-untyped-def]
        user_cache = CacheService(
            redis,
            namespace="users",
            model=User,
            default_ttl=600,
            use_jitter=True,  # Prevents cache stampedes
        )
        # Cache-aside pattern (auto-fetch if missing)
        user = await user_cache.get_or_set(identifier=user_id, factory=lambda: db.get_user(user_id))
        assert isinstance(user, User)
        return user

    with begin(served, router) as client:
        answers = [client.get("/users/7").json() for _ in range(2)]
    assert answers == [{"id": "7", "email": "ann@example.com", "name": "Ann"}] * 2
    assert db.asked == ["user 7"]


def test_a_dependency_for_a_domain(
    served: TestClient, router: APIRouter, valkey: ValkeyServer
) -> None:
    calculated = []

    async def calculate_gym_stats(user_id: str) -> dict[str, int]:
        calculated.append(user_id)
        return {"visits": 12}

    async def get_gym_cache(redis: RedisClient) -> CacheService:
        return CacheService(
            redis,
            namespace="gym",
            default_ttl=1800,  # 30 minutes
            prefix="myapp",
            version="v1",
        )

    GymCache = Annotated[CacheService, Depends(get_gym_cache)]

    @router.get("/gym/stats/{user_id}")
    async def get_gym_stats(user_id: str, gym_cache: GymCache):  # type: ignore[no-untyped-def]
        stats = await gym_cache.get_or_set(
            identifier=user_id, factory=lambda: calculate_gym_stats(user_id)
        )
        return stats  # noqa: RET504

    with begin(served, router) as client:
        answers = [client.get("/gym/stats/7").json() for _ in range(2)]
    assert answers == [{"visits": 12}] * 2
    assert calculated == ["7"]
    assert valkey.ask("EXISTS", "myapp:v1:gym:7") == b":1\r\n"


def test_proactive_deletion_on_write(
    served: TestClient, router: APIRouter, db: Database, valkey: ValkeyServer
) -> None:
    # Proactive deletion on write
    @router.put("/users/{user_id}")
    async def update_user(user_id: str, data: UserUpdate, redis: RedisClient):  # type: ignore[no-untyped-def]
        updated = await db.update_user(user_id, data)
        # Delete exact keys
        await redis.delete(f"users:{user_id}")
        # Pattern-based invalidation
        async for key in redis.scan_iter(f"users:{user_id}:*"):
            await redis.delete(key)
        return updated

    # Or with CacheService
    @router.delete("/products/{product_id}")
    async def delete_product(product_id: str, redis: RedisClient):  # type: ignore[no-untyped-def]
        product_cache: CacheService[Any] = CacheService(redis, "products")
        # Delete specific entry
        await product_cache.delete(product_id)
        # Invalidate all related entries
        count = await product_cache.invalidate_pattern(f"{product_id}:*")
        return {"deleted": True, "cache_invalidated": count}

    related = [build_cache_key("products", "7", {"page": page}) for page in (1, 2)]
    stays = [build_cache_key("products", "77", {"page": 1}), "users:71"]
    for key in (*stays, *related, build_cache_key("products", "7"), "users:7", "users:7:orders"):
        valkey.ask("SET", key, "1")
    with begin(served, router) as client:
        assert client.put("/users/7", json={"name": "Bob"}).json()["name"] == "Bob"
        answer = client.delete("/products/7").json()
    assert answer == {"deleted": True, "cache_invalidated": 2}
    assert sorted(valkey.ask("KEYS", "*").split()[2::2]) == sorted(each.encode() for each in stays)


def test_jitter() -> None:
    # With jitter to prevent stampedes
    drawn = set()
    for _ in range(500):
        ttl = get_ttl_with_jitter(base_ttl=300, jitter_percent=0.1)  # 300s ± 30s
        drawn.add(ttl)
    assert min(drawn) >= 270
    assert max(drawn) <= 330
    assert len(drawn) > 20


def test_graceful_degradation(
    app: FastAPI, router: APIRouter, db: Database, own_valkey: ValkeyServer
) -> None:
    # CacheService already handles errors gracefully
    @router.get("/users/{user_id}")
    async def get_user(user_id: str, redis: RedisClient):  # type: ignore[no-untyped-def]
        user_cache: CacheService[Any] = CacheService(redis, "users")
        # Returns None if cache fails (doesn't crash)
        cached = await user_cache.get(user_id)
        if cached:
            return cached
        # Fallback to database
        return await db.get_user(user_id)

    with begin(TestClient(app), router) as client:
        cachemanager.init(own_valkey.dsn)
        assert client.get("/users/7").json()["name"] == "Ann"
        own_valkey.kill()
        assert client.get("/users/7").json()["name"] == "Ann"
    assert db.asked == ["user 7", "user 7"]


async def test_all_settings(valkey_dsn: str) -> None:
    cachemanager.init(
        redis_url=valkey_dsn,  # Required
        max_connections=50,  # Pool size (10-200)
        socket_timeout=5.0,  # Socket timeout (seconds)
        socket_connect_timeout=2.0,  # Connect timeout
        health_check_interval=30,  # Ping interval
        decode_responses=True,  # Auto-decode bytes to strings
    )
    redis_client = cachemanager.client
    cache = CacheService(
        redis=redis_client,  # Required: Redis client
        namespace="users",  # Required: Cache namespace
        model=User,  # Optional: Pydantic model for validation
        default_ttl=300,  # Default: 300 seconds
        use_jitter=True,  # Add TTL jitter (prevents stampedes)
        prefix="myapp",  # Key prefix (default: "cache")
        version="v1",  # Cache version (for invalidation)
    )
    ann = User(id="7", email="ann@example.com", name="Ann")
    assert await cache.get("7") is None
    assert await cache.set("7", ann) is True
    assert await cache.get("7") == ann
    assert await cache.exists("7") is True
    assert 270 <= await cache.get_ttl("7") <= 330
    assert isinstance(await redis_client.get("myapp:v1:users:7"), str)
    assert await cache.invalidate_pattern() == 1
    assert await cache.delete("7") is False
    async with cachemanager.pipeline(transaction=True) as pipe:
        pipe.set("a", 1)
        pipe.incr("a")
        assert await pipe.execute() == [True, 2]
    await cachemanager.close()


def test_health(app: FastAPI, router: APIRouter, own_valkey: ValkeyServer) -> None:
    @router.get("/health/redis")
    async def redis_health():  # type: ignore[no-untyped-def]
        if not cachemanager.is_available:
            return {"status": "unavailable"}
        if await cachemanager.ping():
            return {"status": "healthy"}
        return {"status": "unhealthy"}

    assert begin(TestClient(app), router).get("/health/redis").json() == {"status": "unavailable"}
    with TestClient(app) as client:
        cachemanager.init(own_valkey.dsn)
        assert client.get("/health/redis").json() == {"status": "healthy"}
        own_valkey.kill()
        assert client.get("/health/redis").json() == {"status": "unhealthy"}
        assert client.get("/health/redis").json() == {"status": "unavailable"}


def test_functions() -> None:
    assert build_cache_key("users", "123") == "cache:v1:users:123"
    assert build_cache_key("users", "123", {"a": 2, "b": 1}) == "cache:v1:users:123:21501dbaf73f"
    assert build_cache_key("users", "123", prefix="app", version="v2") == "app:v2:users:123"
    assert invalidate_pattern("users") == "cache:v1:users:*"
    assert invalidate_pattern("users", "123:*", "app", "v2") == "app:v2:users:123:*"
    random.seed(7)
    assert 270 <= get_ttl_with_jitter(300) <= 330


# -- testing with fakeredis --------------------------------------------------------------


@pytest.fixture
async def fake_redis() -> FakeAsyncRedis:
    return FakeAsyncRedis()


@pytest.fixture
def app_with_cache(fake_redis: FakeAsyncRedis) -> Iterator[FastAPI]:
    app = FastAPI()

    @app.get("/users/{user_id}")
    async def get_user(user_id: str, redis: RedisClient) -> dict[str, Any]:
        cached = await redis.get(f"users:{user_id}")
        if cached:
            return {"user": json.loads(cached), "cached": True}
        await redis.set(f"users:{user_id}", json.dumps({"id": user_id}), ex=300)
        return {"user": {"id": user_id}, "cached": False}

    # Override real Redis with fake
    cachemanager._client = fake_redis
    yield app
    cachemanager._client = None


def test_cached_endpoint(app_with_cache: FastAPI) -> None:
    client = TestClient(app_with_cache)
    # First request - cache miss
    response1 = client.get("/users/123")
    assert response1.json()["cached"] == False  # noqa: E712
    # Second request - cache hit
    response2 = client.get("/users/123")
    assert response2.json()["cached"] == True  # noqa: E712


def test_after_the_fixture_there_is_no_client() -> None:
    assert cachemanager._client is None
    assert asyncio.run(cachemanager.ping()) is False
