"""What the books say afterwards, whatever anybody was told."""

from __future__ import annotations

import asyncio
import time
from typing import NamedTuple
from uuid import UUID

import asyncpg
from load import LIMITED_STOCK, Customers
from scoreboard import Score

SETTLED_WITHIN_SECONDS = 20.0
BUDGET = 0.01
"""The share of requests that may be told to come back although nothing is broken."""
L1_BOUND_MS = 3_000
"""What a process that has lost its pushes may be behind (``staleness_bound_seconds``)."""

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


def verdict(score: Score, books: Books, must_notice: int) -> dict[str, bool]:
    """Each thing that must hold, and whether it does. ``must_notice`` replicas must have shown
    that the payments failed."""
    return {
        "no read was older than a write acknowledged before it": score["stale"] == 0,
        f"the L1 was never behind for more than {L1_BOUND_MS:,} ms": (
            score.longest_behind_ms <= L1_BOUND_MS
        ),
        "no request failed that may not": score["failed"] == 0,
        "nobody was told to come back without need": (
            score["without need"] <= BUDGET * len(score.took_ms)
        ),
        "no order was placed twice": score["placed twice"] == 0 and books.surplus == 0,
        "every acknowledged order is in the books": books.missing == 0,
        "the worker confirmed every order": books.unconfirmed == 0 and score["orders"] > 0,
        "each was charged once, and its amount": books.charged_wrongly == 0,
        "nothing was sold that was not there": books.oversold == 0,
    } | (
        {"every replica saw the circuit of the payments open": len(score.noticed) >= must_notice}
        if must_notice
        else {}
    )
