"""Limited routes: an application with limits of each kind."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, HTTPException, Response
from fastapi.responses import PlainTextResponse, StreamingResponse

from forze.application.contracts.resilience import (
    RateLimitDecision,
    RateLimitStore,
    RateLimitStrategy,
    ResiliencePolicy,
)
from forze.application.execution import (
    DepsPlan,
    ExecutionRuntime,
    LifecyclePlan,
    LifecycleStep,
    ResilienceDepsModule,
)
from forze_fastapi import RateLimit, register_exception_handlers, runtime_lifespan
from forze_redis import (
    RedisClient,
    RedisDepsModule,
    redis_lifecycle_step,
    redis_rate_limit_store,
)

HOUR = 3600.0


def limited(
    *modules: Any, store: RateLimitStore | None = None, steps: tuple[LifecycleStep, ...] = ()
) -> tuple[FastAPI, ExecutionRuntime]:
    """Ten an hour for each caller, three of the small ones, one of the single."""
    policies = {
        name: ResiliencePolicy(rate_limit=RateLimitStrategy(permits=permits, per=HOUR))
        for name, permits in (("api", 10), ("small", 3), ("single", 1))
    }
    policies["closed"] = ResiliencePolicy(
        rate_limit=RateLimitStrategy(permits=10, per=HOUR, fail="closed")
    )
    resilience = ResilienceDepsModule(policies=policies, rate_limit_store=store)
    runtime = ExecutionRuntime(
        deps=DepsPlan.from_modules(resilience, *modules), lifecycle=LifecyclePlan.from_steps(*steps)
    )
    app = FastAPI(lifespan=runtime_lifespan(runtime))
    register_exception_handlers(app)

    async def bound(
        x_user: Annotated[str | None, Header()] = None,
        x_tenant: Annotated[str | None, Header()] = None,
    ) -> AsyncIterator[None]:
        ctx = runtime.get_context()
        with ctx.bind_tenant(x_tenant or "nobody"), ctx.bind_principal(x_user or "nobody"):
            yield

    app.router.dependencies.append(Depends(bound))
    add_routes(app, runtime)
    return app, runtime


def add_routes(app: FastAPI, runtime: ExecutionRuntime) -> None:
    def limit(policy: str, **options: Any) -> Any:
        return Depends(RateLimit(policy, ctx_dep=runtime.get_context, **options))

    api, small = limit("api"), limit("small")

    @app.get("/plain", dependencies=[api])
    async def plain() -> dict[str, bool]:
        return {"ok": True}

    @app.get("/own", dependencies=[small])
    async def own() -> Response:
        return PlainTextResponse("mine", headers={"RateLimit": "of the handler"})

    @app.get("/stream", dependencies=[small])
    async def stream() -> StreamingResponse:
        return StreamingResponse(iter((b"a", b"b")))

    @app.get("/raised", dependencies=[small])
    async def raised() -> None:
        raise HTTPException(418)

    @app.get("/crash", dependencies=[small])
    async def crash() -> None:
        raise RuntimeError("of the inside")

    @app.get("/invalid", dependencies=[small])
    async def invalid(number: int) -> int:
        return number

    @app.get("/both", dependencies=[api, limit("single", legacy_headers=True)])
    async def both() -> None: ...

    costs = limit("api", cost=lambda c: int(c.path_params["units"]), key=lambda _: "costly")

    @app.get("/costly/{units}")
    async def costly(decision: RateLimitDecision = costs) -> int:
        return decision.remaining

    @app.get("/shared", dependencies=[limit("single", key=lambda _: None)])
    async def shared() -> None: ...

    @app.get("/closed", dependencies=[limit("closed")])
    async def closed() -> None: ...


def on_server(dsn: str) -> FastAPI:
    """The limits of a fleet."""
    client = RedisClient()
    return limited(
        RedisDepsModule(client=client),
        store=redis_rate_limit_store(client, namespace="test:limit"),
        steps=(redis_lifecycle_step(dsn=dsn),),
    )[0]
