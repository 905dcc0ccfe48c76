"""What a pattern reaches, and that many keys hold up nobody."""

from __future__ import annotations

import asyncio
import gc
import time
from typing import Any

import pytest
from fakeredis import FakeAsyncRedis
from redis.asyncio import Redis, RedisCluster

from fastapi_rc.errors import InvalidName
from fastapi_rc.keys import build_cache_key, invalidate_pattern
from fastapi_rc.service import CacheService
from forze.testing.cluster import ValkeyCluster

pytestmark = pytest.mark.usefixtures("patient")

KEYS = 200_000


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (("users",), "cache:v1:users:*"),
        (("users", "123:*"), "cache:v1:users:123:*"),
        (("users", "*", "my-app", "v2"), "my-app:v2:users:*"),
        (("us*r?", "[ab]*"), r"cache:v1:us\*r\?:[ab]*"),
        (("a:b", "*"), "cache:v1:a%3Ab:*"),
        (("n", "*", r"a[b]\c"), r"a\[b\]\\c:v1:n:*"),
    ],
)
def test_the_namespace_is_literal_and_the_pattern_a_glob(arguments: Any, pattern: str) -> None:
    assert invalidate_pattern(*arguments) == pattern


@pytest.mark.parametrize("pattern", [None, 5, b"*", "\ud800"])
def test_a_pattern_is_text(pattern: Any) -> None:
    with pytest.raises(InvalidName):
        invalidate_pattern("users", pattern)


async def test_variants_of_an_identifier(redis: Redis) -> None:
    cache = CacheService[Any](redis, "products")
    for identifier in ("42", "42:posts", "42:21501dbaf73f", "421", "4"):
        await cache.set(identifier, 1)
    await cache.set("42", 1, params={"page": 1})
    await cache.set("42", 1, params={"page": 2})
    assert await cache.invalidate_pattern("42:*") == 4
    left = sorted(str(key).removeprefix("cache:v1:products:") for key in await redis.keys())
    assert left == ["4", "42", "421"]
    assert await cache.invalidate_pattern("42") == 1
    assert await cache.invalidate_pattern() == 2
    assert await cache.invalidate_pattern() == 0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"namespace": "us*"}, {"namespace": "users"}),
        ({"namespace": "user?"}, {"namespace": "users"}),
        ({"namespace": "[u]sers"}, {"namespace": "users"}),
        ({"namespace": "*"}, {"namespace": "users"}),
        ({"namespace": "users"}, {"namespace": "users:posts"}),
        ({"namespace": "n", "prefix": "*"}, {"namespace": "n", "prefix": "cache"}),
        ({"namespace": "n", "version": "v?"}, {"namespace": "n", "version": "v1"}),
        ({"namespace": "a\\*"}, {"namespace": "ab"}),
    ],
    ids=str,
)
@pytest.mark.parametrize("fake", [False, True], ids=["valkey", "fake"])
async def test_one_namespace_never_reaches_into_another(
    redis: Redis, one: Any, other: Any, fake: bool
) -> None:
    client: Any = FakeAsyncRedis() if fake else redis
    ours, theirs = CacheService[Any](client, **one), CacheService[Any](client, **other)
    await ours.set("1", "ours")
    await theirs.set("1", "theirs")
    assert await ours.invalidate_pattern() == 1
    assert await ours.get("1") is None
    assert await theirs.get("1") == "theirs"
    if fake:
        await client.aclose()


async def test_two_hundred_thousand_keys_hold_up_nobody(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill = "for i = 1, tonumber(ARGV[2]) do redis.call('SET', ARGV[1] .. ':' .. i, 1) end"
    await redis.eval(fill, 0, build_cache_key("big", "x"), KEYS)
    await CacheService[Any](redis, "bigger").set("1", 1)
    steps: list[float] = []
    run = asyncio.Handle._run

    def timed(handle: asyncio.Handle) -> None:
        before = time.thread_time()  # our own time: others use the machine, too
        run(handle)
        steps.append(time.thread_time() - before)

    monkeypatch.setattr(asyncio.Handle, "_run", timed)
    gc.collect()
    gc.freeze()  # what the whole run of the tests has left is not to be swept in a step
    try:
        removed = await CacheService[Any](redis, "big").invalidate_pattern()
    finally:
        gc.unfreeze()
        monkeypatch.undo()
    assert removed == KEYS
    assert await redis.keys() == ["cache:v1:bigger:1"]
    assert len(steps) > KEYS // 1000
    assert max(steps) < 0.010, f"the event loop was held up for {max(steps) * 1000:.1f} ms"


class LostHalfway(FakeAsyncRedis):
    """Away from the second SCAN on."""

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        if args[0] == "SCAN" and int(args[1]) != 0:
            raise ConnectionError("away")
        return await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]


async def test_an_outage_ends_it_with_what_was_removed_until_then() -> None:
    async with LostHalfway() as client:
        cache = CacheService[Any](client, "many")
        await client.mset({build_cache_key("many", number): "1" for number in range(2500)})
        removed = await cache.invalidate_pattern()
        assert 0 < removed < 2500
        assert await client.dbsize() == 2500 - removed


async def test_every_primary_of_a_cluster(valkey_cluster: ValkeyCluster) -> None:
    async with RedisCluster.from_url(
        valkey_cluster.dsn.replace("redis+cluster", "redis").split(",")[0], decode_responses=True
    ) as client:
        await client.flushall(target_nodes=RedisCluster.PRIMARIES)
        cache = CacheService[Any](client, "spread", lease=5)
        for number in range(300):
            assert await cache.set(number, number)
        assert await cache.get_or_set(7, lambda: "never") == 7
        assert await cache.get_or_set("new", lambda: "made") == "made"
        assert await cache.get("new") == "made"
        await CacheService[Any](client, "other").set(1, 1)
        assert await cache.invalidate_pattern() == 301
        assert await cache.get(7) is None
        assert await CacheService[Any](client, "other").get(1) == 1
