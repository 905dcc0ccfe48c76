"""Redis users with fewer rights: what the documentation says is enough, and less than that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import asyncpg
import pytest
from tests.faults.world import ask, replica

from forze.errors import ConfigurationError
from forze.testing.servers import RespServer
from forze_redis import RedisConfig

DOCUMENTED = next(
    line.split("`")[1]
    for line in Path(__file__).parents[2].joinpath("docs/operations.md").read_text().splitlines()
    if line.startswith("ACL")
)


def user(server: RespServer, rights: str) -> RedisConfig:
    ask(server, "ACL", "SETUSER", "app", "reset", "on", ">secret", *rights.split())
    return RedisConfig(username="app", password="secret")


async def test_the_documented_rights_are_enough(
    database: asyncpg.Connection[Any], postgres_dsn: str, own_redis_server: RespServer
) -> None:
    """P1: a user with exactly these rights reads, writes, and is never stale."""
    config = user(own_redis_server, DOCUMENTED)
    port = own_redis_server.port
    async with (
        replica(postgres_dsn, port, redis=config) as a,
        replica(postgres_dsn, port, redis=config) as b,
    ):
        product = await a.create(price=1)
        assert await b.price(product) == await b.price(product) == 1
        product = await a.reprice(product, 2)
        assert await b.price(product) == 2
        await a.docs.kill_matching({})
        assert (a.stats.intent_failures, a.stats.journal, b.stats.hits) == (0, 0, 1)
        assert await a.ctx.cache(a.spec.cache).get("k") is None


async def test_a_right_that_is_missing_refuses_the_write_by_name(
    database: asyncpg.Connection[Any], postgres_dsn: str, own_redis_server: RespServer
) -> None:
    """P4: a server that will never take an announcement is no outage: nothing is written."""
    config = user(own_redis_server, DOCUMENTED + " -time")
    async with replica(postgres_dsn, own_redis_server.port, redis=config) as a:
        product = await a.create(price=1)
        assert await a.price(product) == 1
        with pytest.raises(ConfigurationError, match="ACL SETUSER"):
            await a.reprice(product, 2)
        assert await database.fetchval("SELECT price FROM products") == 1
        assert await a.price(product) == 1


def test_no_secret_in_what_is_printed() -> None:
    assert "hunter2" not in repr(RedisConfig(password="hunter2"))
