"""What a time to live may be, and what jitter does to it."""

from __future__ import annotations

import math
import random
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from fastapi_rc.errors import InvalidTtl
from fastapi_rc.service import CacheService
from fastapi_rc.ttl import NO_EXPIRY, get_ttl_with_jitter, milliseconds

pytestmark = pytest.mark.usefixtures("patient")

WRONG = [0, -1, 0.0, -0.5, math.nan, -math.inf, timedelta(0), timedelta(seconds=-1), True, False,
         "60", 10**30]  # fmt: skip


@pytest.mark.parametrize(
    ("ttl", "expected"),
    [
        (1, 1000), (300, 300_000), (0.5, 500), (0.00001, 1), (NO_EXPIRY, None),
        (timedelta(minutes=1, milliseconds=5), 60_005), (timedelta(days=2), 172_800_000),
    ],
)  # fmt: skip
def test_seconds_and_timedeltas_in_milliseconds(ttl: Any, expected: int | None) -> None:
    assert milliseconds(ttl) == expected


@pytest.mark.parametrize("ttl", WRONG, ids=repr)
async def test_a_ttl_that_is_none_raises_and_stores_nothing(redis: Redis, ttl: Any) -> None:
    cache = CacheService[Any](redis, "users")
    called = []
    with pytest.raises(ValueError, match="ttl"):
        await cache.set("1", "value", ttl=ttl)
    with pytest.raises(ValueError, match="ttl"):
        await cache.get_or_set("1", lambda: called.append(1), ttl=ttl)
    with pytest.raises(ValueError, match="default_ttl"):
        CacheService[Any](redis, "users", default_ttl=ttl)
    assert called == []
    assert await redis.keys() == []


async def test_an_explicit_ttl_is_kept_and_the_default_is_spread(redis: Redis) -> None:
    cache = CacheService[str](redis, "users", default_ttl=1000)
    for number in range(40):
        await cache.set(f"explicit{number}", "x", ttl=1000)
        await cache.set(f"default{number}", "x")
    explicit = [await redis.pttl(f"cache:v1:users:explicit{each}") for each in range(40)]
    default = [await redis.pttl(f"cache:v1:users:default{each}") for each in range(40)]
    assert all(970_000 < each <= 1_000_000 for each in explicit)
    assert all(870_000 < each <= 1_100_000 for each in default)
    assert max(default) - min(default) > 50_000
    calm = CacheService[str](redis, "calm", default_ttl=timedelta(minutes=10), use_jitter=False)
    await calm.set("1", "x")
    assert 590_000 < await redis.pttl("cache:v1:calm:1") <= 600_000


async def test_no_expiry_and_what_get_ttl_says(redis: Redis) -> None:
    cache = CacheService[str](redis, "users")
    await cache.set("for ever", "x", ttl=NO_EXPIRY)
    await cache.set("a while", "x", ttl=100)
    await CacheService[str](redis, "config", default_ttl=NO_EXPIRY).set("1", "x")
    await CacheService[str](redis, "config", default_ttl=None).set("2", "x")
    assert await cache.get_ttl("for ever") == -1
    assert 90 <= await cache.get_ttl("a while") <= 100
    assert await cache.get_ttl("nothing") == -2
    assert await redis.ttl("cache:v1:config:1") == await redis.ttl("cache:v1:config:2") == -1


def test_jitter_is_even_within_its_share() -> None:
    drawn = [get_ttl_with_jitter(300) for _ in range(3_000)]
    assert {type(each) for each in drawn} == {int}
    assert (min(drawn), max(drawn)) == (270, 330)
    assert 297 < sum(drawn) / len(drawn) < 303
    thirds = [sum(low <= each < low + 20 for each in drawn) for low in (270, 290, 310)]
    assert all(800 < each < 1_200 for each in thirds)


@given(
    st.integers(1, 10**9) | st.floats(1e-3, 1e9),
    st.floats(0, 1, exclude_max=True),
    st.integers(),
)
def test_jitter_stays_within_its_share_and_above_zero(base: Any, share: float, seed: int) -> None:
    dice = random.Random(seed).random
    for draw in (dice, lambda: 0.0, lambda: math.nextafter(1, 0)):
        ttl = get_ttl_with_jitter(base, share, dice=draw)
        assert ttl > 0
        assert abs(ttl - base) <= base * share + 4 * math.ulp(base)
        assert type(ttl) is type(base)


def test_jitter_of_short_and_endless_lives() -> None:
    assert {get_ttl_with_jitter(1) for _ in range(50)} == {1}
    assert get_ttl_with_jitter(NO_EXPIRY) == NO_EXPIRY
    assert get_ttl_with_jitter(300, 0) == 300


@pytest.mark.parametrize(
    ("base", "share"), [(0, 0.1), (-5, 0.1), (300, 1), (300, -0.1), (300, 10), (300, math.nan)]
)
def test_jitter_refuses_what_makes_no_ttl(base: int, share: float) -> None:
    with pytest.raises(InvalidTtl):
        get_ttl_with_jitter(base, share)


@pytest.mark.parametrize("share", ["x", None, True])
def test_a_share_that_is_no_number_is_a_type_error(share: Any) -> None:
    with pytest.raises(TypeError, match=r"jitter_percent is .* a share of the TTL") as refused:
        get_ttl_with_jitter(300, share)
    assert isinstance(refused.value, InvalidTtl)
