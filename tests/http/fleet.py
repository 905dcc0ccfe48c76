"""An application for several processes: one payment per key, ten calls an hour, one report."""

from __future__ import annotations

import asyncio
import os
from datetime import timedelta

from fastapi import Depends, FastAPI
from pydantic import BaseModel

from forze.application.contracts.idempotency import IdempotencySpec
from forze.application.contracts.resilience import RateLimitStrategy, ResiliencePolicy
from forze.application.execution import (
    DepsPlan,
    ExecutionRuntime,
    LifecyclePlan,
    ResilienceDepsModule,
)
from forze_fastapi import (
    IdempotencyFeature,
    RateLimit,
    cached_response,
    register_exception_handlers,
    runtime_lifespan,
)
from forze_redis import (
    RedisClient,
    RedisDepsModule,
    RedisIdempotencyConfig,
    redis_lifecycle_step,
    redis_rate_limit_store,
)

SPEC = IdempotencySpec(name="payments", wait=timedelta(seconds=20))


class Report(BaseModel):
    run: int
    colors: set[str] = {"red", "green", "blue"}
    margin: int = 0
    source: str = ""
    author: str = ""


def application(dsn: str | None = None) -> FastAPI:
    """On this server, or on the one that the environment names."""
    client = RedisClient()
    api = ResiliencePolicy(rate_limit=RateLimitStrategy(permits=10, per=3600))
    runtime = ExecutionRuntime(
        deps=DepsPlan.from_modules(
            RedisDepsModule(
                client=client,
                idempotency=RedisIdempotencyConfig(namespace="test:payments"),
                caches={"cached": {"namespace": "test:reports"}},
            ),
            ResilienceDepsModule(
                policies={"api": api},
                rate_limit_store=redis_rate_limit_store(
                    client, namespace="test:limit", timeout=10.0
                ),
            ),
        ),
        lifecycle=LifecyclePlan.from_steps(redis_lifecycle_step(dsn=dsn or os.environ["DSN"])),
        specs=[SPEC],
    )
    app = FastAPI(lifespan=runtime_lifespan(runtime))
    register_exception_handlers(app)

    @app.post("/payments", status_code=201)
    @IdempotencyFeature(spec=SPEC, ctx_dep=runtime.get_context)
    async def pay() -> dict[str, int]:
        run: int = await client.redis.incr("test:runs")
        await asyncio.sleep(0.02)
        return {"run": run}

    @app.get("/limited", dependencies=[Depends(RateLimit("api", ctx_dep=runtime.get_context))])
    async def limited() -> None: ...

    @app.get("/report", response_model_exclude={"colors", "margin", "source", "author"})
    @cached_response(60, ctx_dep=runtime.get_context)
    async def report() -> Report:
        return Report(run=await client.redis.incr("test:reports"))

    return app
