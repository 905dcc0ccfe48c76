"""What routes ask for: the client and the service, 503 without one, overrides, futures."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from fakeredis import FakeAsyncRedis
from fastapi import FastAPI
from redis.asyncio import Redis

from fastapi_rc import (
    CacheManager,
    CacheServiceDep,
    RedisClient,
    cachemanager,
    get_cache_service,
    get_redis_client,
)
from forze_fastapi import register_exception_handlers

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it would rather have another HTTP client
    from fastapi.testclient import TestClient

app = FastAPI()


@app.get("/direct")
async def direct(redis: RedisClient) -> Any:
    """With ``annotations`` imported from the future, as half of all modules have it."""
    return await redis.incr("visits")


@app.get("/service")
async def service(cache: CacheServiceDep, namespace: str = "") -> Any:
    return await cache.get_or_set("answer", lambda: [42, None])


@app.get("/manager")
async def manager() -> Any:
    return await cachemanager.client.get("visits")


@pytest.fixture
def fake() -> Iterator[FakeAsyncRedis]:
    fake = FakeAsyncRedis()
    cachemanager._client = fake
    yield fake
    cachemanager._client = None


@pytest.mark.parametrize("path", ["/direct", "/service", "/manager"])
def test_uninitialised_it_is_a_503_in_any_application(path: str) -> None:
    answer = TestClient(app).get(path)
    assert answer.status_code == 503
    assert answer.json() == {"detail": "The cache is not available."}
    assert answer.headers["retry-after"] == "1"


def test_with_the_handlers_of_forze_it_is_a_problem() -> None:
    other = FastAPI()
    register_exception_handlers(other)
    other.get("/direct")(direct)
    answer = TestClient(other).get("/direct")
    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/problem+json"
    assert "init" not in answer.text


def test_an_outage_is_a_503_for_who_uses_the_client_and_none_for_the_service() -> None:
    cachemanager.init("redis://127.0.0.1:1/0")
    try:
        client = TestClient(app)
        assert [client.get("/direct").status_code for _ in range(3)] == [503] * 3
        assert client.get("/service").json() == [42, None]
    finally:
        asyncio.run(cachemanager.close())


def test_the_client_can_be_overridden(fake: FakeAsyncRedis) -> None:
    other = FakeAsyncRedis(decode_responses=True)
    app.dependency_overrides[get_redis_client] = lambda: other
    try:
        client = TestClient(app)
        assert [client.get("/direct").json() for _ in range(2)] == [1, 2]
        assert client.get("/service").json() == [42, None]
    finally:
        app.dependency_overrides.clear()
    assert asyncio.run(_keys(fake)) == []
    assert asyncio.run(_keys(other)) == ["cache:v1:default:answer", "visits"]


async def _keys(redis: Redis) -> list[Any]:
    keys: list[Any] = await redis.keys()
    await redis.aclose()
    return sorted(keys)


def test_no_caller_chooses_the_namespace(fake: FakeAsyncRedis) -> None:
    client = TestClient(app)
    assert client.get("/service", params={"namespace": "users"}).json() == [42, None]
    assert asyncio.run(_keys(fake)) == [b"cache:v1:default:answer"]
    names = {
        each["name"] for each in app.openapi()["paths"]["/direct"]["get"].get("parameters", ())
    }
    assert names == set()


async def test_they_are_coroutines_for_who_calls_them(fake: FakeAsyncRedis) -> None:
    assert await get_redis_client() is fake
    cache = await get_cache_service(fake)
    assert (cache.namespace, cache.prefix, cache.version) == ("default", "cache", "v1")


def test_a_manager_of_ones_own_is_untouched_by_the_applications(fake: FakeAsyncRedis) -> None:
    mine = CacheManager()
    assert not mine.is_available
    assert cachemanager.is_available
