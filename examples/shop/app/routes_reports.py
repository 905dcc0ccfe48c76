"""Reports."""

from __future__ import annotations

from datetime import timedelta

from fastapi import APIRouter
from pydantic import BaseModel

from app.dependencies import Context
from app.orders import SALES
from forze_fastapi import cached_response
from forze_postgres import PostgresClientDepKey

router = APIRouter(prefix="/reports", tags=["reports"])


class Sales(BaseModel):
    orders: int
    revenue: int


@router.get("/sales")
@cached_response(ttl=timedelta(minutes=1), tags=SALES, per=None, max_age=0)
async def sales(ctx: Context) -> Sales:
    """Confirmed orders; kept until the worker has made its rounds, and says so by the tag."""
    books = ctx.provide(PostgresClientDepKey)
    (row,) = await books.rows("SELECT orders, revenue FROM sales", doing="read the sales")
    return Sales(**dict(row))
