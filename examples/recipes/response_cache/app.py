"""One replica: quotes that are dear to compute, kept as values and as responses."""

from __future__ import annotations

import asyncio
import os
from datetime import timedelta
from typing import Annotated

from fastapi import Depends, FastAPI, Header
from pydantic import BaseModel

from forze.application.contracts.tenancy import current_principal
from forze.application.execution import (
    DepsPlan,
    ExecutionContext,
    ExecutionRuntime,
    LifecyclePlan,
)
from forze.application.integrations.cached import cached
from forze_fastapi import bind_request, cached_response, runtime_lifespan
from forze_redis import RedisClient, RedisDepsModule, redis_lifecycle_step

PRICES = {1: 40, 2: 90}
"""Stands for the database that both replicas read."""


class Quote(BaseModel):
    product: int
    price: int


def user(x_user: Annotated[str | None, Header()] = None) -> str | None:
    """Stands for whoever your authentication says is calling."""
    return x_user


def build_app() -> FastAPI:
    """The application of one replica."""
    runtime = ExecutionRuntime(
        deps=DepsPlan.from_modules(
            RedisDepsModule(client=RedisClient(), caches={"cached": {"namespace": "shop:cached"}})
        ),
        lifecycle=LifecyclePlan.from_steps(redis_lifecycle_step(dsn=os.environ["REDIS_DSN"])),
    )
    app = FastAPI(lifespan=runtime_lifespan(runtime))
    app.state.computed = 0
    context = Depends(runtime.get_context)

    @cached(timedelta(minutes=5), ctx=runtime.get_context, tags=["product:{product}"], name="quote")
    async def quote_of(product: int) -> Quote:
        app.state.computed += 1
        await asyncio.sleep(0.05)  # a query
        return Quote(product=product, price=PRICES[product])

    @app.get("/quotes/{product}")
    @cached_response(timedelta(minutes=1), tags=["product:{product}"], name="quotes")
    async def quote(product: int) -> Quote:
        return await quote_of(product)

    @app.put("/quotes/{product}")
    async def reprice(product: int, price: int, ctx: ExecutionContext = context) -> None:
        PRICES[product] = price
        await ctx.invalidate_tags(f"product:{product}")

    @app.get("/basket", dependencies=[Depends(bind_request(principal=user))])
    @cached_response(timedelta(minutes=1), name="basket")
    async def basket() -> str:
        return f"the basket of {current_principal()}"

    return app
