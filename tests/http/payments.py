"""Payments, once per key: handlers of every kind that FastAPI takes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from datetime import timedelta
from typing import Annotated, Any

from fastapi import (
    APIRouter,
    BackgroundTasks,
    Depends,
    FastAPI,
    Form,
    Header,
    HTTPException,
    Query,
    Request,
    Response,
    UploadFile,
)
from fastapi.responses import JSONResponse, PlainTextResponse, RedirectResponse, StreamingResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field

from forze.application.contracts.idempotency import IdempotencySpec
from forze.application.execution import DepsPlan, ExecutionRuntime, LifecyclePlan
from forze.errors import BackendUnavailable, NotFoundError
from forze_fastapi import IdempotencyFeature, register_exception_handlers, runtime_lifespan
from forze_memory import MemoryDepsModule
from forze_redis import (
    RedisClient,
    RedisConfig,
    RedisDepsModule,
    RedisIdempotencyConfig,
    redis_lifecycle_step,
)

SPEC = IdempotencySpec(name="payments", store={402})
WAITING = IdempotencySpec(name="payments", wait=timedelta(seconds=10), lease=timedelta(seconds=5))


class CreatePayment(BaseModel):
    amount: int


class Payment(BaseModel):
    model_config = ConfigDict(populate_by_name=True)
    number: int = Field(alias="paymentNumber")
    amount: int
    note: str | None = None


class Declined(Exception):
    """The application answers it with 402."""


class DatedRoute(APIRoute):
    """A user's own kind of route, that has the last word on an answer."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def dated(request: Request) -> Response:
            response = await handle(request)
            response.status_code, response.headers["Last-Modified"] = 203, "1"
            return response

        return dated


class World:
    """The application, and what a test sees and holds of it."""

    def __init__(self, runtime: ExecutionRuntime, spec: IdempotencySpec, **options: Any) -> None:
        self.runtime = runtime
        self.once = IdempotencyFeature(spec=spec, ctx_dep=runtime.get_context, **options)
        self.forget()
        self.app = FastAPI(lifespan=runtime_lifespan(runtime), dependencies=[Depends(self.bound)])
        register_exception_handlers(self.app)
        router = APIRouter(prefix="/v1")
        self.plain(router)
        self.odd(router)
        self.app.include_router(router)
        self.app.exception_handler(Declined)(self.declining)
        for path in ("/a", "/b"):
            mounted = FastAPI(dependencies=[Depends(self.bound)])
            mounted.include_router(router)
            self.app.mount(path, mounted)

    async def declining(self, _: Request, __: Exception) -> Response:
        self.declined += 1
        return JSONResponse({"declined": self.declined}, 402)

    def forget(self) -> None:
        """Begin anew, for another test."""
        self.runs = 0
        self.declined = 0
        self.entered = asyncio.Event()
        self.go = asyncio.Event()
        self.background: list[int] = []
        self.chunks: list[bytes] = []
        self.claims: list[Any] = []
        self.left: list[str] = []

    async def bound(self, x_user: Annotated[str | None, Header()] = None) -> AsyncIterator[None]:
        ctx = self.runtime.get_context()
        if x_user is None:
            yield
            return
        with ctx.bind_principal(x_user):
            yield

    def plain(self, router: APIRouter) -> None:
        once = self.once

        @router.post(
            "/payments",
            status_code=201,
            response_model_exclude_unset=True,
        )
        @once
        async def create_payment(
            payment: CreatePayment, response: Response, background: BackgroundTasks
        ) -> Payment:
            """Take money."""
            self.runs += 1
            response.headers["Location"] = f"/v1/payments/{self.runs}"
            response.headers["X-Trace"] = "of this request only"
            response.set_cookie("session", "secret")
            background.add_task(self.background.append, self.runs)
            return Payment(number=self.runs, amount=payment.amount)

        @router.post("/held")
        @once
        async def held(request: Request) -> dict[str, int]:
            self.claims.append(getattr(request.state, "idempotency", None))
            self.runs += 1
            self.entered.set()
            await self.go.wait()
            return {"run": self.runs}

        @router.post("/sync", status_code=202)
        @once
        def not_async(payment: CreatePayment) -> dict[str, int]:
            self.runs += 1
            return {"run": self.runs}

        @router.post("/status/{code}")
        @once
        async def answer_with(
            code: int, response: Response, how: Annotated[str, Query()] = "set"
        ) -> dict[str, int]:
            self.runs += 1
            if how == "raise":
                raise HTTPException(code, "said", headers={"ETag": '"raised"'})
            if how == "declined":
                raise Declined
            if how == "committed":
                raise BackendUnavailable("the cache is away", backend="redis", committed=True)
            if how == "missing":
                raise NotFoundError("no such account", resource="accounts")
            if how == "crash":
                raise RuntimeError("of the inside")
            response.status_code = code
            return {"run": self.runs}

    def odd(self, router: APIRouter) -> None:
        once = self.once

        @router.post("/own")
        @once
        async def own_response(how: str) -> Response:
            self.runs += 1
            if how == "empty":
                return Response(status_code=204)
            if how == "redirect":
                return RedirectResponse(f"/elsewhere/{self.runs}", status_code=303)
            if how == "large":
                return PlainTextResponse("x" * 2000)
            return Response(
                bytes(range(256)),
                media_type="application/x-bytes; v=1",
                headers={"ETag": '"7"', "Authorization": "secret", "Set-Cookie": "a=b"},
            )

        @router.post("/stream")
        @once
        async def stream() -> StreamingResponse:
            self.runs += 1

            async def parts() -> AsyncIterator[bytes]:
                yield b"first,"
                self.entered.set()
                await self.go.wait()
                yield b"last"

            return StreamingResponse(parts(), media_type="text/plain")

        @router.post("/upload")
        @once
        async def upload(request: Request) -> dict[str, int]:
            self.runs += 1
            async for chunk in request.stream():
                if chunk:
                    self.chunks.append(chunk)
                    self.entered.set()
            return {"bytes": sum(map(len, self.chunks))}

        @router.post("/raw")
        @once
        async def raw(request: Request) -> Any:
            self.runs += 1
            return await request.json()

        @router.post("/form")
        @once
        async def form(title: Annotated[str, Form()], file: UploadFile) -> dict[str, Any]:
            self.runs += 1
            return {"title": title, "text": (await file.read()).decode(), "run": self.runs}

        def converting() -> Iterator[None]:
            try:
                yield
            except HTTPException:
                raise NotFoundError("made of it", resource="accounts") from None

        @router.post("/converted", dependencies=[Depends(converting)])
        @once
        async def converted() -> None:
            self.runs += 1
            raise HTTPException(402)

        def committing() -> Iterator[None]:
            yield
            self.left.append("committed")
            if self.go.is_set():
                raise NotFoundError("could not be committed", resource="rows")

        @router.post("/committed", dependencies=[scoped(committing)])
        @once
        async def committed() -> dict[str, int]:
            self.runs += 1
            return {"run": self.runs}

        dated = APIRouter(route_class=DatedRoute)

        @dated.post("/dated")
        @once
        async def with_a_date() -> dict[str, int]:
            self.runs += 1
            return {"run": self.runs}

        router.include_router(dated)


def scoped(dependency: Any) -> Any:
    """A dependency that is left before the answer is sent, where FastAPI has such."""
    try:
        return Depends(dependency, scope="function")
    except TypeError:
        return Depends(dependency)


def in_memory(spec: IdempotencySpec = SPEC, **options: Any) -> World:
    """One process, its records in memory."""
    runtime = ExecutionRuntime(deps=DepsPlan.from_modules(MemoryDepsModule()), specs=[spec])
    return World(runtime, spec, **options)


def on_server(dsn: str, spec: IdempotencySpec = SPEC) -> World:
    """Records on a server, whose answers are waited for half a second."""
    client = RedisClient()
    module = RedisDepsModule(
        client=client, idempotency=RedisIdempotencyConfig(namespace="test:payments")
    )
    config = RedisConfig(socket_timeout=0.5, connect_timeout=0.5)
    runtime = ExecutionRuntime(
        deps=DepsPlan.from_modules(module),
        lifecycle=LifecyclePlan.from_steps(redis_lifecycle_step(dsn=dsn, config=config)),
        specs=[spec],
    )
    return World(runtime, spec)
