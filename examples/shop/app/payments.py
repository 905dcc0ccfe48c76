"""The payment provider: somebody else's service, which fails now and then.

It stands here so that the shop needs nothing but itself. Its books are a table, so that what it
was really asked to charge can be counted afterwards.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any
from uuid import UUID

from app.specs import OrderRead
from forze.application.execution import ExecutionContext
from forze.errors import BackendUnavailable
from forze_postgres import PostgresClientDepKey

FAILS = 0.05

_CHARGE = "INSERT INTO charges SELECT $1, $2 FROM provider WHERE up RETURNING amount"
_CHARGED = """
SELECT (SELECT coalesce(sum(amount), 0)::bigint FROM charges WHERE order_id = $1) AS amount
FROM provider WHERE up
"""


async def charge(ctx: ExecutionContext, order: OrderRead) -> str:
    """Charge the customer; the receipt. Raises ``BackendUnavailable``: nothing was charged."""
    await _asked(ctx, _CHARGE, order.id, order.total)
    return f"R-{order.number}"


async def charged(ctx: ExecutionContext, order_id: UUID) -> int:
    """What was charged for an order so far. Raises ``BackendUnavailable``."""
    return await _asked(ctx, _CHARGED, order_id)


async def _asked(ctx: ExecutionContext, question: str, *arguments: Any) -> int:
    await asyncio.sleep(random.uniform(0.002, 0.02))
    books = ctx.provide(PostgresClientDepKey)
    rows = (
        await books.rows(question, *arguments, doing="ask the provider", write=True)
        if random.random() >= FAILS
        else []
    )
    if not rows:
        raise BackendUnavailable("the payment provider hung up", backend="payments")
    return int(rows[0]["amount"])
