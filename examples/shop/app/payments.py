"""The payment provider: somebody else's service, which fails now and then.

It stands here so that the shop needs nothing but itself. Its books are a table, so that what it
was really asked to charge can be counted afterwards.
"""

from __future__ import annotations

import asyncio
import random

from app.specs import OrderRead
from forze.application.execution import ExecutionContext
from forze_postgres import PostgresClientDepKey

FAILS = 0.1

_CHARGE = "INSERT INTO charges (order_id, amount) VALUES ($1, $2)"


async def charge(ctx: ExecutionContext, order: OrderRead) -> str:
    """Charge the customer; the receipt. Raises ``ConnectionError`` where nothing was charged."""
    await asyncio.sleep(random.uniform(0.002, 0.02))
    if random.random() < FAILS:
        raise ConnectionError("the payment provider hung up")
    books = ctx.provide(PostgresClientDepKey)
    await books.rows(_CHARGE, order.id, order.total, doing="charge", write=True)
    return f"R-{order.number}"
