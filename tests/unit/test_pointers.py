"""The pointers of the Redis cache over a client that is made up: when a fill is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest

from forze.application.contracts.cache import CacheSpec, Fill
from forze.errors import BackendUnavailable
from forze_redis.cache import RedisPointers
from forze_redis.client import RedisClient
from forze_redis.config import RedisCacheConfig
from forze_redis.keys import CacheKeys
from forze_redis.wire.link import Incarnation
from forze_redis.wire.scripts import Script


class Client:
    """Answers when the test says so."""

    def __init__(self, *, clustered: bool) -> None:
        self.clustered = clustered
        self.calls: list[asyncio.Future[Any]] = []

    def incarnation(self, key: str | None = None) -> Incarnation:
        return Incarnation("g" * 8)

    def on_reconnect(self, callback: Callable[[str, str], None]) -> None: ...

    def send_cached(self, packed: bytes) -> asyncio.Future[Any]:
        raise NotImplementedError

    def run_cached(
        self, script: Script, keys: Sequence[str], args: Sequence[object]
    ) -> asyncio.Future[Any]:
        self.calls.append(asyncio.get_running_loop().create_future())
        return self.calls[-1]


def filling(client: Client, many: int) -> asyncio.Task[list[bool]]:
    keys = CacheKeys(
        cast(RedisClient, client), "app:products", tenant_aware=False, resource="products"
    )
    pointers = RedisPointers(
        cast(RedisClient, client),
        keys,
        RedisCacheConfig(namespace="app:products"),
        CacheSpec(name="products"),
        "s" * 8,
    )
    token = pointers.token()
    return asyncio.create_task(
        pointers.fill(
            [Fill(keys.pointer(str(each)), token, 1, b"{}", 9, 0) for each in range(many)]
        )
    )


async def test_a_fill_by_itself_ends_in_the_turn_after_its_answer() -> None:
    """Every miss waits for it."""
    client = Client(clustered=False)
    fill = filling(client, 3)
    await asyncio.sleep(0)
    (call,) = client.calls
    call.set_result([1, 0, 1])
    await asyncio.sleep(0)
    assert fill.done()
    assert fill.result() == [True, False, True]


async def test_a_fill_by_itself_that_fails_says_so() -> None:
    client = Client(clustered=False)
    fill = filling(client, 1)
    await asyncio.sleep(0)
    client.calls[0].set_exception(BackendUnavailable("away", backend="redis"))
    with pytest.raises(BackendUnavailable, match="away"):
        await fill


async def test_of_fills_sent_together_one_may_fail() -> None:
    client = Client(clustered=True)
    fill = filling(client, 2)
    await asyncio.sleep(0)
    client.calls[0].set_exception(BackendUnavailable("away", backend="redis"))
    client.calls[1].set_result([1])
    assert await fill == [False, True]
