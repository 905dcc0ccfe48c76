"""The service as its table of methods has it, what a call costs, and what an outage does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any, Generic, TypeVar
from uuid import UUID

import pytest
from fakeredis import FakeAsyncRedis
from pydantic import BaseModel
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

import fastapi_rc.service
from fastapi_rc.calls import calls_of
from fastapi_rc.circuit import Circuit
from fastapi_rc.errors import InvalidName
from fastapi_rc.service import CacheService
from forze.errors import ConfigurationError
from forze.testing.proxy import RespProxy, command
from forze.testing.servers import ValkeyServer

pytestmark = pytest.mark.usefixtures("patient")

SOME_UUID = UUID(int=7)


@pytest.fixture
async def proxy(valkey: ValkeyServer, valkey_dsn: str) -> AsyncIterator[RespProxy]:
    async with RespProxy(valkey.port) as between:
        yield between


@pytest.fixture
async def client(proxy: RespProxy) -> AsyncIterator[Redis]:
    """A client through the proxy that tries each call once."""
    once = Retry(NoBackoff(), 0)
    async with Redis.from_url(proxy.dsn, decode_responses=True, retry=once) as through:
        yield through


@pytest.fixture
def short_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fastapi_rc.service, "budget_of", lambda _: 0.05)


async def test_the_methods_in_turn(either: Redis) -> None:
    cache = CacheService[Any](either, "users")
    assert await cache.get("1") is None
    assert await cache.exists("1") is False
    assert await cache.delete("1") is False
    assert await cache.get_ttl("1") == -2
    assert await cache.set("1", "x") is True
    assert await cache.get("1") == "x"
    assert await cache.exists("1") is True
    assert 270 <= await cache.get_ttl("1") <= 330
    assert await cache.delete("1") is True
    assert await cache.get("1") is None


async def test_params_are_variants(redis: Redis) -> None:
    cache = CacheService[Any](redis, "users")
    await cache.set("1", "plain")
    await cache.set("1", "variant", params={"page": 1})
    assert await cache.get("1") == "plain"
    assert await cache.get("1", params={}) == "plain"
    assert await cache.get("1", params={"page": 1}) == "variant"
    assert await cache.exists("1", params={"page": 2}) is False
    assert await cache.get_or_set("1", lambda: "other", params={"page": 2}) == "other"
    assert await cache.get_ttl("1", params={"page": 1}) > 0
    assert await cache.delete("1", params={"page": 1}) is True
    assert await cache.get("1") == "plain"


@pytest.mark.parametrize("identifier", [123, SOME_UUID, "ä:*"])
async def test_identifiers_of_every_kind_are_cached(redis: Redis, identifier: Any) -> None:
    cache = CacheService[Any](redis, "users")
    runs: list[int] = []

    def factory() -> str:
        runs.append(1)
        return "made"

    for _ in range(3):
        assert await cache.get_or_set(identifier, factory) == "made"
    assert runs == [1]
    assert await cache.get(str(identifier)) == "made"


@pytest.mark.parametrize("identifier", [None, 1.5, True, b"x"])
async def test_other_identifiers_raise_everywhere(redis: Redis, identifier: Any) -> None:
    cache = CacheService[Any](redis, "users")
    for call in (cache.get, cache.delete, cache.exists, cache.get_ttl):
        with pytest.raises(TypeError):
            await call(identifier)
    with pytest.raises(TypeError):
        await cache.set(identifier, 1)
    with pytest.raises(TypeError):
        await cache.get_or_set(identifier, lambda: 1)


@pytest.mark.parametrize("options", [{"namespace": ""}, {"namespace": "n", "prefix": ""}])
def test_a_service_without_a_name_is_refused(redis: Redis, options: Any) -> None:
    with pytest.raises(InvalidName):
        CacheService(redis, **options)


async def test_a_stored_none_is_a_hit(redis: Redis) -> None:
    cache = CacheService[Any](redis, "users")
    runs: list[int] = []
    for _ in range(3):
        assert await cache.get_or_set("1", lambda: runs.append(1)) is None
    assert runs == [1]
    assert await cache.exists("1") is True


async def test_prefix_and_version_separate(redis: Redis) -> None:
    services = [CacheService[Any](redis, "n", prefix=p, version=v) for p in "ab" for v in "12"]
    for number, each in enumerate(services):
        await each.set("x", number)
    assert [await each.get("x") for each in services] == [0, 1, 2, 3]


async def test_a_hit_is_one_command(client: Redis, proxy: RespProxy) -> None:
    cache = CacheService[Any](client, "users")
    await cache.set("1", "x")
    proxy.commands.clear()
    await cache.get("1")
    await cache.get_or_set("1", lambda: "never")
    await asyncio.gather(*(cache.get_or_set("1", lambda: "never") for _ in range(10)))
    assert [each[0] for each in proxy.commands] == [b"GET"] * 3


async def test_a_miss_is_two_commands(client: Redis, proxy: RespProxy) -> None:
    await client.ping()
    proxy.commands.clear()
    await CacheService[Any](client, "users").get_or_set("1", lambda: "made")
    assert [each[0] for each in proxy.commands] == [b"GET", b"SET"]


# -- outage --------------------------------------------------------------------


async def check_every_call_without_a_server(cache: CacheService[Any]) -> None:
    runs: list[int] = []

    async def factory() -> str:
        runs.append(1)
        await asyncio.sleep(0.01)
        return "made"

    async with asyncio.timeout(20):
        assert await cache.get("1") is None
        assert await cache.set("1", "x") is False
        assert await cache.delete("1") is False
        assert await cache.exists("1") is False
        assert await cache.get_ttl("1") == -2
        assert await cache.invalidate_pattern() == 0
        values = await asyncio.gather(*(cache.get_or_set("1", factory) for _ in range(20)))
    assert values == ["made"] * 20
    assert runs == [1], "once per key, also without a cache"


async def test_a_server_that_refuses(client: Redis, proxy: RespProxy) -> None:
    proxy.refuse()
    proxy.cut()
    await check_every_call_without_a_server(CacheService[Any](client, "users"))


@pytest.mark.usefixtures("short_budget")
async def test_a_server_that_is_silent(client: Redis, proxy: RespProxy) -> None:
    proxy.black_hole()
    await check_every_call_without_a_server(CacheService[Any](client, "users"))


async def test_look_and_store_share_one_budget(
    client: Redis, proxy: RespProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fastapi_rc.service, "budget_of", lambda _: 0.2)
    await client.ping()
    hold = proxy.hold_request(command("GET"))
    loop = asyncio.get_running_loop()
    began = loop.time()
    assert await CacheService[Any](client, "users").get_or_set("1", lambda: "made") == "made"
    assert 0.15 < loop.time() - began < 10
    hold.release()
    await client.ping()
    assert [each for each in proxy.commands if each[0] == b"SET"] == []


async def test_after_three_failures_no_call_is_made_for_a_second(
    client: Redis, proxy: RespProxy, caplog: pytest.LogCaptureFixture
) -> None:
    cache = CacheService[Any](client, "users")
    await cache.set("1", "x")
    cache._budget = 0.03
    clock = [100.0]
    calls_of(client).circuit = Circuit(clock=lambda: clock[0])
    silence = proxy.hold_request(command("GET"), times=None)
    with caplog.at_level(logging.WARNING, "fastapi_rc"):
        for _ in range(10):
            assert await cache.get("1") is None
    assert silence.count == 3
    assert [each.name for each in caplog.records] == ["fastapi_rc"] * 2, "a miss, then away"
    silence.release()
    cache._budget = 20.0
    assert await cache.get("1") is None
    clock[0] += 1
    assert await cache.get("1") == "x"
    assert calls_of(client)._failures == 0


def one_refusing(dsn: str) -> Redis:
    return Redis.from_url(dsn, max_connections=1)


def one_waiting(dsn: str) -> Redis:
    return Redis.from_pool(BlockingConnectionPool.from_url(dsn, max_connections=1, timeout=20))


@pytest.mark.parametrize("make", [one_refusing, one_waiting])
async def test_a_full_pool_is_waited_for(proxy: RespProxy, make: Callable[[str], Redis]) -> None:
    runs: list[int] = []
    async with make(proxy.dsn) as narrow:
        cache = CacheService[Any](narrow, "users")
        for number in range(10):
            await cache.set(number, number)
        proxy.delay(0.005, command("GET"))
        asked = (cache.get_or_set(number, lambda: runs.append(1)) for number in range(10))
        assert await asyncio.gather(*asked) == [*range(10)]
    assert runs == [], "every one was a hit"


async def test_what_the_program_does_wrong_is_a_miss_and_a_warning(
    redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    await redis.rpush("cache:v1:users:1", "a list")
    cache = CacheService[Any](redis, "users")
    with caplog.at_level(logging.WARNING, "fastapi_rc"):
        assert await cache.get("1") is None
    assert [each.levelname for each in caplog.records] == ["WARNING"]
    assert "WRONGTYPE" in caplog.text
    assert await cache.exists("1") is False
    assert await cache.get_or_set("1", lambda: "made") == "made"
    assert await redis.type("cache:v1:users:1") == "list", "what is not ours is not overwritten"
    assert await cache.set("1", "ours") is True
    assert await cache.get("1") == "ours"


async def test_bytes_that_are_no_text_are_a_miss_on_a_decoding_client(
    redis: Redis, valkey_dsn: str
) -> None:
    async with Redis.from_url(valkey_dsn) as raw:
        await raw.set("cache:v1:users:1", b"\xff\xfe")
    cache = CacheService[Any](redis, "users")
    assert await cache.get("1") is None
    assert await cache.set("1", "ours") is True
    assert await cache.get("1") == "ours"


class OfAnotherLoop(FakeAsyncRedis):
    """As a client of redis-py is on another event loop than its connections were made on."""

    async def execute_command(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("Event loop is closed")


async def test_a_client_of_another_loop_is_a_miss() -> None:
    async with OfAnotherLoop() as client:
        await check_every_call_without_a_server(CacheService[Any](client, "users"))


# -- how it is made ------------------------------------------------------------------


M = TypeVar("M")


class User(BaseModel):
    id: int


class Order(BaseModel):
    id: int


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (lambda redis: CacheService(None, "n"), "must be an asyncio client .* not None"),
        (lambda redis: CacheService("redis://h", "n"), "not a str"),
        (
            lambda redis: CacheService[Any](redis, "n", model="User"),  # type: ignore[arg-type]
            "'User', a name: .* itself",
        ),
    ],
)
def test_what_no_service_is_made_of(redis: Redis, made: Callable[[Any], Any], says: str) -> None:
    with pytest.raises(TypeError, match=says) as refused:
        made(redis)
    assert isinstance(refused.value, ConfigurationError)


async def test_two_models_are_refused(redis: Redis) -> None:
    with pytest.raises(TypeError, match=r"CacheService\[User\].*model=Order\) names two models"):
        await CacheService[User](redis, "n", model=Order).set("1", User(id=1))  # type: ignore[arg-type]
    for same in (
        CacheService[User](redis, "n", model=User),
        CacheService[User | None](redis, "n", model=User),
        CacheService[Any](redis, "n", model=User),
    ):
        assert await same.set("1", User(id=1))


class Lists(CacheService[list[M]], Generic[M]):
    """A service whose model is made of its parameter."""


async def test_a_parameter_of_a_subclass_is_no_second_model(redis: Redis) -> None:
    assert await Lists[int](redis, "n").set("1", [1])


async def test_two_models_are_refused_where_typing_swallows_it(redis: Redis) -> None:
    cache = CacheService[Any](redis, "n", model=User)
    with pytest.raises(TypeError):
        cache.__orig_class__ = CacheService[Order]
    with pytest.raises(TypeError, match="names two models"):
        await cache.set("1", Order(id=1))


def test_its_repr_says_what_it_is_of() -> None:
    redis = Redis.from_url("redis://user:geheim@localhost/0")
    cache = CacheService[list[User]](redis, "users", default_ttl=600)
    named = f"model=list[{__name__}.User]"
    assert repr(cache) == f"CacheService(namespace='users', {named}, default_ttl=600)"
    users = CacheService(redis, "users", model=User)
    assert repr(users) == "CacheService(namespace='users', model=User, default_ttl=300)"
    assert repr(CacheService(redis, "x")) == "CacheService(namespace='x', default_ttl=300)"
