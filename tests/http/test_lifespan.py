"""The runtime lives as long as the application, and the context is a dependency."""

import asyncio
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Depends, FastAPI, Request

from forze.application.contracts.counter import CounterSpec
from forze.application.execution import (
    DepsPlan,
    ExecutionContext,
    ExecutionRuntime,
    LifecyclePlan,
    LifecycleStep,
)
from forze.errors import BackendUnavailable, ConfigurationError
from forze.testing.serving import client_of, serving
from forze_fastapi import ContextDep, context_of, runtime_lifespan
from forze_fastapi.context import context_dependency, declare
from forze_memory import MemoryDepsModule

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it would rather have another HTTP client
    from fastapi.testclient import TestClient

VISITS = CounterSpec(name="visits")


def _runtime(log: list[str], **options: Any) -> ExecutionRuntime:
    async def startup(ctx: ExecutionContext) -> None:
        log.append("runtime up")

    async def shutdown(ctx: ExecutionContext) -> None:
        log.append("runtime down")

    return ExecutionRuntime(
        deps=DepsPlan.from_modules(MemoryDepsModule()),
        lifecycle=LifecyclePlan.from_steps(
            LifecycleStep(id="log", startup=startup, shutdown=shutdown)
        ),
        **options,
    )


def _app(runtime: ExecutionRuntime, **options: Any) -> FastAPI:
    app = FastAPI(lifespan=runtime_lifespan(runtime, **options))

    @app.get("/")
    async def visit(ctx: Annotated[ExecutionContext, Depends(context_of(runtime))]) -> int:
        return await ctx.counter(VISITS).incr()

    @app.get("/sync")
    def sync(ctx: Annotated[ExecutionContext, Depends(runtime.get_context)]) -> bool:
        return ctx is runtime.get_context()

    @app.get("/state")
    async def state(request: Request) -> list[bool]:
        return [request.app.state.runtime is runtime, request.state.runtime is runtime]

    return app


@asynccontextmanager
async def _in_process(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client of ``app`` where no server is needed to see it."""
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        yield client


async def test_the_runtime_runs_while_the_application_does() -> None:
    log: list[str] = []
    runtime = _runtime(log)
    app = _app(runtime)
    for count in (1, 2):  # as a reloaded worker does it
        async with client_of(app) as client:
            assert (await client.get("/")).json() == count
            assert (await client.get("/sync")).json() is True
            assert (await client.get("/state")).json() == [True, True]
    assert log == ["runtime up", "runtime down"] * 2
    with pytest.raises(ConfigurationError):
        runtime.get_context()


async def test_a_lifespan_of_ones_own_is_inside() -> None:
    log: list[str] = []
    runtime = _runtime(log)

    @asynccontextmanager
    async def own(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        ctx = runtime.get_context()
        log.append(f"own up {await ctx.counter(VISITS).incr(by=7)}")
        yield {"greeting": "hello"}
        log.append(f"own down {await ctx.counter(VISITS).incr()}")

    app = _app(runtime, then=own)

    @app.get("/greeting")
    async def greeting(request: Request) -> str:
        return str(request.state.greeting)

    async with client_of(app) as client:
        assert (await client.get("/greeting")).json() == "hello"
        assert (await client.get("/state")).json() == [True, True]
    assert log == ["runtime up", "own up 7", "own down 8", "runtime down"]


async def test_two_runtimes_nest() -> None:
    log: list[str] = []
    shop, audit = _runtime(log), _runtime(log)
    app = FastAPI(lifespan=runtime_lifespan(shop, then=runtime_lifespan(audit, name="audit")))

    @app.get("/")
    async def state(request: Request) -> list[bool]:
        return [request.state.runtime is shop, request.state.audit is audit]

    async with client_of(app) as client:
        assert (await client.get("/")).json() == [True, True]
    assert log == ["runtime up"] * 2 + ["runtime down"] * 2


async def test_applications_of_a_process_share_a_runtime() -> None:
    log: list[str] = []
    runtime = _runtime(log)
    public, internal = _app(runtime), _app(runtime)
    started = [asyncio.Event(), asyncio.Event()]
    leave = [asyncio.Event(), asyncio.Event()]

    async def serve(number: int, app: FastAPI) -> None:
        async with serving(app):
            started[number].set()
            await leave[number].wait()

    async with asyncio.TaskGroup() as group:
        for number, app in enumerate((public, internal)):
            group.create_task(serve(number, app))
        await asyncio.gather(*(each.wait() for each in started))
        assert log == ["runtime up"]
        leave[0].set()
        async with client_of(internal) as client:  # comes later, goes earlier
            assert (await client.get("/")).json() == 1
        assert log == ["runtime up"]
        leave[1].set()
    assert log == ["runtime up", "runtime down"]


async def test_applications_that_are_cancelled_anywhere_leave_nothing_open() -> None:
    async def step(ctx: ExecutionContext) -> None:
        for _ in range(3):
            await asyncio.sleep(0)

    runtime = ExecutionRuntime(
        deps=DepsPlan.from_modules(MemoryDepsModule()),
        lifecycle=LifecyclePlan.from_steps(LifecycleStep(id="x", startup=step, shutdown=step)),
    )

    async def live(turns: int) -> None:
        async with runtime_lifespan(runtime)(FastAPI()):
            for _ in range(turns):
                await asyncio.sleep(0)
                runtime.get_context()

    for seed in range(200):
        dice = Random(seed)
        lives = [asyncio.create_task(live(dice.randrange(8))) for _ in range(4)]
        for _ in range(dice.randrange(25)):
            await asyncio.sleep(0)
        for each in dice.sample(lives, 2):
            each.cancel()
        late = asyncio.create_task(live(dice.randrange(8)))
        ends = await asyncio.gather(*lives, late, return_exceptions=True)
        assert {type(each) for each in ends} <= {type(None), asyncio.CancelledError}, ends
        assert ends[-1] is None
        with pytest.raises(ConfigurationError, match="not running"):
            runtime.get_context()
        async with runtime_lifespan(runtime)(FastAPI()):
            pass


def test_with_the_test_client() -> None:
    log: list[str] = []
    app = _app(_runtime(log))
    for count in (1, 2):
        with TestClient(app) as client:
            assert client.get("/").json() == count
            assert client.get("/state").json() == [True, True]
    assert log == ["runtime up", "runtime down"] * 2


def test_another_event_loop_is_told_so() -> None:
    runtime = _runtime([])
    with TestClient(_app(runtime)):
        other = TestClient(_app(runtime))
        with pytest.raises(ConfigurationError, match="another event loop"):
            other.__enter__()
    with TestClient(_app(runtime)) as client:
        assert client.get("/").json() == 1


async def test_what_keeps_the_runtime_from_starting_is_the_last_line() -> None:
    async def startup(ctx: ExecutionContext) -> None:
        raise BackendUnavailable("nothing listens at 10.0.0.7; start it", backend="redis")

    runtime = ExecutionRuntime(
        deps=DepsPlan.from_modules(MemoryDepsModule()),
        lifecycle=LifecyclePlan.from_steps(LifecycleStep(id="x", startup=startup)),
    )
    told: list[dict[str, str]] = []

    async def receive() -> dict[str, str]:
        return {"type": "lifespan.startup"}

    async def send(message: Any) -> None:
        told.append(message)

    with pytest.raises(BackendUnavailable):
        await _app(runtime)({"type": "lifespan", "state": {}}, receive, send)
    (failed,) = told  # which servers print as it is
    assert failed["type"] == "lifespan.startup.failed"
    last = failed["message"].rstrip().splitlines()[-1]
    assert last == "forze.errors.BackendUnavailable: nothing listens at 10.0.0.7; start it"


async def test_a_runtime_that_failed_to_start_can_start_later() -> None:
    fails = [True]

    async def startup(ctx: ExecutionContext) -> None:
        if fails.pop():
            raise BackendUnavailable("away", backend="redis")

    runtime = ExecutionRuntime(
        deps=DepsPlan.from_modules(MemoryDepsModule()),
        lifecycle=LifecyclePlan.from_steps(LifecycleStep(id="x", startup=startup)),
    )
    lifespan = runtime_lifespan(runtime)
    with pytest.raises(BackendUnavailable):
        async with lifespan(FastAPI()):
            raise AssertionError
    fails.append(False)
    async with lifespan(FastAPI()):
        assert isinstance(runtime.get_context(), ExecutionContext)


# -- the context as a dependency ---------------------------------------------


def _name() -> str:
    return "visits"


async def test_ctx_dep_may_be_anything_that_fastapi_can_call() -> None:
    runtime = _runtime([])

    def plain() -> ExecutionContext:
        return runtime.get_context()

    async def asynchronous() -> ExecutionContext:
        return runtime.get_context()

    def with_others(name: Annotated[str, Depends(_name)]) -> ExecutionContext:
        assert name == "visits"
        return runtime.get_context()

    app = FastAPI(lifespan=runtime_lifespan(runtime))
    every: list[ContextDep] = [
        runtime.get_context, context_of(runtime), plain, asynchronous, with_others
    ]  # fmt: skip
    for number, each in enumerate(every):

        @app.get(f"/{number}")
        async def visit(
            ctx: Annotated[ExecutionContext, Depends(context_dependency(each))],
        ) -> bool:
            return ctx is runtime.get_context()

    async with _in_process(app) as client:
        for number in range(5):
            assert (await client.get(f"/{number}")).json() is True


def test_the_context_of_a_runtime_needs_no_thread_and_can_be_overridden() -> None:
    runtime = _runtime([])
    assert context_dependency(runtime.get_context) == context_of(runtime)
    assert context_of(runtime) == context_of(runtime)
    assert hash(context_of(runtime)) == hash(context_of(runtime))
    assert context_of(_runtime([])) != context_of(runtime)
    other = _runtime([])
    app = _app(runtime)
    with TestClient(_app(other)):
        app.dependency_overrides[context_of(runtime)] = context_of(other)
        assert TestClient(app).get("/").json() == 1


async def test_a_decorator_can_declare_dependencies_that_its_handler_does_not_know() -> None:
    runtime = _runtime([])

    def counted(handler: Any) -> Any:
        async def wrapper(*args: Any, forze_ctx: ExecutionContext, **kwargs: Any) -> Any:
            count = await forze_ctx.counter(VISITS).incr()
            return 100 * count + await handler(*args, **kwargs)

        declare(wrapper, handler, forze_ctx=context_of(runtime))
        return wrapper

    app = FastAPI(lifespan=runtime_lifespan(runtime))

    @app.get("/{n}")
    @counted
    async def double(n: int, add: int = 0) -> int:
        return 2 * n + add

    async with _in_process(app) as client:
        assert (await client.get("/4?add=1")).json() == 109
    with pytest.raises(ConfigurationError, match="of its own"):
        declare(lambda: None, double, forze_ctx=context_of(runtime))


@pytest.mark.parametrize("make", [runtime_lifespan, context_of, context_dependency])
def test_what_is_no_runtime_is_told_so(make: Any) -> None:
    with pytest.raises(ConfigurationError, match="not 'postgres://'"):
        make("postgres://")
