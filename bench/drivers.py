"""asyncpg against psycopg 3, both on a pool: what a document costs with each driver.

psycopg is not a dependency. In an environment of its own::

    uv run --with 'psycopg[binary]' --with psycopg-pool python -m bench.drivers

Each visit runs one driver for a fraction of a second; visits of both alternate, and the
figures are medians over the rounds of one run, so that only the ratio has to be believed.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import random
import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any
from uuid import UUID

import asyncpg
from pydantic import BaseModel

from forze.testing.servers import PostgresServer

ROWS = 1_000
POOL = 8
_TABLE = """
    CREATE TABLE product (id uuid PRIMARY KEY, rev bigint NOT NULL, name text NOT NULL,
                          price bigint NOT NULL, tags jsonb NOT NULL)
"""
_FILL = """
    INSERT INTO product SELECT gen_random_uuid(), 1, 'product ' || n, n, '["a", "b"]'
    FROM generate_series(1, $1) AS n
"""
_SELECT = "SELECT id, rev, name, price, tags FROM product WHERE id = {}"
_UPDATE = "UPDATE product SET price = {}, rev = rev + 1 WHERE id = {} RETURNING rev"


class Product(BaseModel):
    """What a row becomes."""

    id: UUID
    rev: int
    name: str
    price: int
    tags: Any


Work = Callable[[UUID], Awaitable[Any]]


async def with_asyncpg(dsn: str, stack: AsyncExitStack) -> dict[str, Work]:
    """The two operations on asyncpg's pool, without its reset query (psycopg has none)."""

    class Plain(asyncpg.Connection):  # type: ignore[type-arg, unused-ignore]
        def get_reset_query(self) -> str:
            return ""

    pool = await stack.enter_async_context(
        asyncpg.create_pool(dsn, min_size=POOL, max_size=POOL, connection_class=Plain)
    )
    select, change = _SELECT.format("$1"), _UPDATE.format("$1", "$2")

    async def read(pk: UUID) -> Product:
        async with pool.acquire() as connection:
            row = await connection.fetchrow(select, pk)
        return Product.model_validate(dict(row or {}))

    async def update(pk: UUID) -> Any:
        async with pool.acquire() as connection:
            return await connection.fetchval(change, 7, pk)

    return {"select": read, "update": update}


async def with_psycopg(dsn: str, stack: AsyncExitStack) -> dict[str, Work]:
    """The two operations on psycopg_pool: autocommit, prepared, binary results."""
    psycopg_pool: Any = importlib.import_module("psycopg_pool")
    dict_row: Any = importlib.import_module("psycopg.rows").dict_row
    options = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
    pool = await stack.enter_async_context(
        psycopg_pool.AsyncConnectionPool(
            dsn, min_size=POOL, max_size=POOL, kwargs=options, open=False
        )
    )
    select, change = _SELECT.format("%s"), _UPDATE.format("%s", "%s")

    async def read(pk: UUID) -> Product:
        async with pool.connection() as connection:
            cursor = connection.cursor(binary=True)
            await cursor.execute(select, (pk,))
            row = await cursor.fetchone()
        return Product.model_validate(row)

    async def update(pk: UUID) -> Any:
        async with pool.connection() as connection:
            cursor = connection.cursor(binary=True)
            await cursor.execute(change, (7, pk))
            return await cursor.fetchone()

    return {"select": read, "update": update}


async def visit(work: Work, ids: list[UUID], callers: int, seconds: float) -> float:
    """Microseconds per operation with ``callers`` at once."""
    began = time.perf_counter()
    until, count = began + seconds, 0
    dice = random.Random(callers)

    async def caller() -> None:
        nonlocal count
        while time.perf_counter() < until:
            await work(dice.choice(ids))
            count += 1

    await asyncio.gather(*(caller() for _ in range(callers)))
    return (time.perf_counter() - began) * 1e6 / count


async def measure(dsn: str, rounds: int, seconds: float) -> dict[tuple[str, int, str], float]:
    """Medians by (operation, callers, driver)."""
    async with AsyncExitStack() as stack:
        admin = await asyncpg.connect(dsn)
        await admin.execute(_TABLE)
        await admin.execute(_FILL, ROWS)
        ids = [UUID(str(row["id"])) for row in await admin.fetch("SELECT id FROM product")]
        await admin.close()
        drivers = {
            "asyncpg": await with_asyncpg(dsn, stack),
            "psycopg": await with_psycopg(dsn, stack),
        }
        found: dict[tuple[str, int, str], list[float]] = {}
        for _ in range(rounds):
            for callers in (1, 32):
                for operation in ("select", "update"):
                    for name, operations in drivers.items():
                        cost = await visit(operations[operation], ids, callers, seconds)
                        found.setdefault((operation, callers, name), []).append(cost)
        return {key: statistics.median(costs) for key, costs in found.items()}


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(prog="python -m bench.drivers", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.4, help="per visit")
    options = parser.parse_args()
    with PostgresServer() as server:
        found = asyncio.run(measure(server.dsn, options.rounds, options.seconds))
    for name in ("asyncpg", "psycopg"):
        print(f"{name} {importlib.metadata.version(name)}")
    print(f"{'us per operation':<18} {'callers':>7} {'asyncpg':>8} {'psycopg':>8} {'ratio':>6}")
    for operation, callers in [(o, c) for o in ("select", "update") for c in (1, 32)]:
        ours, other = (found[operation, callers, name] for name in ("asyncpg", "psycopg"))
        print(f"{operation:<18} {callers:>7} {ours:>8.0f} {other:>8.0f} {other / ours:>6.2f}")


if __name__ == "__main__":
    main()
