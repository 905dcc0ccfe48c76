"""Ordering."""

from __future__ import annotations

import asyncio
import logging
from uuid import UUID

from fastapi import APIRouter
from kombu.exceptions import OperationalError
from pydantic import BaseModel

from app import orders, tasks
from app.dependencies import Context, Customer, runtime
from app.specs import ORDERING, ORDERS, Cents, OrderPlace, OrderRead
from forze.errors import CircuitOpen, ConflictError, NotFoundError
from forze_fastapi import IdempotencyFeature, problem_responses

log = logging.getLogger("shop")
router = APIRouter(prefix="/orders", tags=["orders"])


class Bill(BaseModel):
    charged: Cents


once = IdempotencyFeature(spec=ORDERING, ctx_dep=runtime.get_context, required=True)


@router.post(
    "",
    status_code=201,
    responses={**once.responses, **problem_responses(ConflictError, NotFoundError)},
)
@once
async def place(wanted: OrderPlace, customer: Customer, ctx: Context) -> OrderRead:
    """Place an order; sent again under the same ``Idempotency-Key`` it is the same order."""
    order = await orders.place(ctx, wanted, customer)
    # Nobody waits for it, and in nobody's name: it is the shop's task, as the rounds are.
    ctx.spawn(ask_for_confirmation(order.id), name="ask for confirmation")
    return order


@router.get("/{id}", responses=problem_responses(NotFoundError))
async def read(id: UUID, ctx: Context) -> OrderRead:
    """An order as it stands."""
    return await ctx.document.query(ORDERS).get(id)


@router.get("/{id}/bill", responses=problem_responses(CircuitOpen))
async def bill(id: UUID, ctx: Context) -> Bill:
    """What has been charged for an order; 503 while the payment provider is away."""
    return Bill(charged=await orders.bill(ctx, id))


async def ask_for_confirmation(order_id: UUID) -> None:
    """Tell the worker. A message that is lost is made up for by its rounds."""
    try:
        await asyncio.to_thread(tasks.confirm.delay, str(order_id))
    except OperationalError as reason:
        log.info("order %s waits for the rounds: %s", order_id, reason)
