"""What the shop does with orders, from the counter to the books. Knows neither HTTP nor Celery."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from functools import cache
from uuid import UUID

from app import payments
from app.specs import (
    ORDER_NUMBERS,
    ORDERS,
    PAYMENTS,
    PRODUCTS,
    ROUNDS,
    OrderCreate,
    OrderPlace,
    OrderRead,
    OrderUpdate,
    ProductRead,
    ProductUpdate,
)
from forze.application.contracts.counter import IdAllocator
from forze.application.execution import ExecutionContext
from forze.errors import BackendError, ConflictError, ForzeError, RevisionMismatch
from forze_postgres import PostgresClientDepKey, fenced_update

log = logging.getLogger("shop")

LOW = 10
FORGOTTEN = timedelta(seconds=1)
SALES = "sales"
"""The tag of everything that is made of the sales."""

_SUMS = """
SELECT count(*) AS orders, coalesce(sum(total), 0)::bigint AS revenue
FROM orders WHERE status = 'confirmed'
"""


@cache
def numbers(ctx: ExecutionContext) -> IdAllocator:
    """Order numbers, out of blocks of a hundred per process: no round trip for most."""
    return ctx.counter(ORDER_NUMBERS).allocator(block=100)


async def place(ctx: ExecutionContext, wanted: OrderPlace, customer: str) -> OrderRead:
    """Take it off the stock and write it down, both or neither. Raises ``ConflictError``."""
    number, order = await numbers(ctx).next(), None
    try:
        async with ctx.transaction("shop"):
            order = await _placed(ctx, wanted, customer, number)
    except BackendError as error:
        if order is None or not error.committed:
            raise
        log.warning("order %s stands; what had to follow did not: %s", order.id, error)
    return order


async def _placed(
    ctx: ExecutionContext, wanted: OrderPlace, customer: str, number: int
) -> OrderRead:
    product = await ctx.document.query(PRODUCTS).get(wanted.product_id, for_update=True)
    if product.stock < wanted.quantity:
        raise ConflictError(f"only {product.stock} left", resource="products")
    left = ProductUpdate(stock=product.stock - wanted.quantity)
    await ctx.document.command(PRODUCTS).update(product.id, product.rev, left)
    order = OrderCreate(
        number=number,
        customer=customer,
        product_id=product.id,
        quantity=wanted.quantity,
        total=product.price * wanted.quantity,
    )
    return await ctx.document.command(ORDERS).create(order)


async def confirm(ctx: ExecutionContext, order_id: UUID) -> None:
    """Charge for it, once however often this is called, and say so in the order."""
    order = await ctx.document.query(ORDERS).get(order_id)
    if order.status == "confirmed":
        return
    receipt = await ctx.idempotency(PAYMENTS).run(
        "charge", str(order.id), order.total, pay, ctx, order
    )
    paid = OrderUpdate(status="confirmed", receipt=receipt)
    await ctx.document.command(ORDERS).update(order.id, order.rev, paid)
    await refill(ctx, await ctx.document.query(PRODUCTS).get(order.product_id))


async def pay(ctx: ExecutionContext, order: OrderRead) -> str:
    """The provider, under the policy for it; the receipt."""
    return await ctx.resilience.run("payments", payments.charge, ctx, order)


async def bill(ctx: ExecutionContext, order_id: UUID) -> int:
    """What the provider has charged for it, under the same policy."""
    return await ctx.resilience.run("payments", payments.charged, ctx, order_id)


async def refill(ctx: ExecutionContext, product: ProductRead) -> None:
    """Fill up a stock that runs low. Who comes between does it instead."""
    if product.stock >= LOW or not product.refill:
        return
    try:
        full = ProductUpdate(stock=product.refill)
        await ctx.document.command(PRODUCTS).update(product.id, product.rev, full)
    except RevisionMismatch:
        log.info("%s was changed meanwhile", product.name)


async def make_rounds(ctx: ExecutionContext) -> None:
    """See to what was forgotten, and do the books; one process of the fleet at a time.

    Messages are hints, the table says what there is to do: an order whose message was lost, or
    whose payment failed, is still there. Raises ``LockNotAcquired`` where somebody is at it.
    """
    async with ctx.dlock_scope(ROUNDS).scope("orders") as lock:
        before = datetime.now(UTC) - FORGOTTEN
        forgotten = await ctx.document.query(ORDERS).find_many(
            {"status": "placed", "created_at": {"lt": before}}, sort=["created_at"], limit=100
        )
        await asyncio.gather(*(try_to_confirm(ctx, each.id) for each in forgotten.items))
        books = ctx.provide(PostgresClientDepKey)
        (sums,) = await books.rows(_SUMS, doing="sum up the orders")
        await fenced_update(books, "sales", 1, lock, dict(sums))
        await ctx.invalidate_tags(SALES)


async def try_to_confirm(ctx: ExecutionContext, order_id: UUID) -> None:
    """:func:`confirm`; what fails today is tried again on the next round."""
    try:
        await confirm(ctx, order_id)
    except ForzeError as reason:
        log.info("order %s stays placed: %s", order_id, reason)
