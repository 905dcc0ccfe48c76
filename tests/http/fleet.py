"""An application for several processes: one payment per key, ten calls an hour."""

from __future__ import annotations

import asyncio
import os
from datetime import timedelta

from fastapi import Depends, FastAPI

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


def application(dsn: str | None = None) -> FastAPI:
    """On this server, or on the one that the environment names."""
    client = RedisClient()
    api = ResiliencePolicy(rate_limit=RateLimitStrategy(permits=10, per=3600))
    runtime = ExecutionRuntime(
        deps=DepsPlan.from_modules(
            RedisDepsModule(
                client=client, idempotency=RedisIdempotencyConfig(namespace="test:payments")
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

    return app
