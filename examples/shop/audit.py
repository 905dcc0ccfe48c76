"""What the books say afterwards, whatever anybody was told."""

from __future__ import annotations

import asyncio
import time
from typing import NamedTuple
from uuid import UUID

import asyncpg
from load import LIMITED_STOCK, Customers

SETTLED_WITHIN_SECONDS = 20.0

UNCONFIRMED = "SELECT count(*) FROM orders WHERE status <> 'confirmed'"
MISSING = """
SELECT count(*) FROM unnest($1::uuid[]) AS acknowledged (id)
WHERE NOT EXISTS (SELECT FROM orders WHERE orders.id = acknowledged.id)
"""
UNCHARGED = """
SELECT count(*) FROM orders LEFT JOIN (
    SELECT order_id, count(*) AS times, sum(amount) AS amount FROM charges GROUP BY order_id
) AS charged ON order_id = id
WHERE times IS DISTINCT FROM 1 OR amount <> total
"""
OVERSOLD = """
SELECT count(*) FROM products
WHERE id = ANY ($1::uuid[]) AND stock + (
    SELECT coalesce(sum(quantity), 0) FROM orders WHERE product_id = products.id
) <> $2
"""


class Books(NamedTuple):
    """All of them are 0 where all is well."""

    surplus: int
    """Orders that nobody placed, or that stand there twice."""
    missing: int
    """Orders that were acknowledged and are not there."""
    unconfirmed: int
    charged_wrongly: int
    """Orders that were charged never, twice, or another amount."""
    oversold: int
    """Limited editions of which stock and sales do not add up."""


async def audit(postgres_dsn: str, customers: Customers) -> Books:
    """Wait until the worker has had its time, and look."""
    connection = await asyncpg.connect(postgres_dsn)
    try:
        until = time.monotonic() + SETTLED_WITHIN_SECONDS
        while await connection.fetchval(UNCONFIRMED) and time.monotonic() < until:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        limited = [UUID(each) for each in customers.limited]
        placed = await connection.fetchval("SELECT count(*) FROM orders")
        return Books(
            surplus=max(0, placed - len(customers.orders) - customers.unanswered),
            missing=await connection.fetchval(MISSING, [UUID(each) for each in customers.orders]),
            unconfirmed=await connection.fetchval(UNCONFIRMED),
            charged_wrongly=await connection.fetchval(UNCHARGED),
            oversold=await connection.fetchval(OVERSOLD, limited, LIMITED_STOCK),
        )
    finally:
        await connection.close()
