"""Tenant, principal and deadline of each request, and of no other, over real connections."""

import ast
import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Annotated, Any
from uuid import UUID

import fastapi
import httpx
import pytest
import pytest_asyncio
from fastapi import (
    APIRouter,
    BackgroundTasks,
    Depends,
    FastAPI,
    Header,
    HTTPException,
    Request,
    WebSocket,
)
from fastapi.responses import StreamingResponse
from tests.architecture.tree import files, shown

from forze.application.contracts.counter import CounterSpec
from forze.application.contracts.tenancy import (
    current_deadline,
    current_principal,
    current_tenant,
)
from forze.application.contracts.transaction import in_transaction
from forze.application.execution import DepsPlan, ExecutionContext, ExecutionRuntime
from forze.errors import ConfigurationError
from forze.testing.serving import client_of, serving
from forze_fastapi import (
    BodyLimit,
    FreshRequests,
    TenantHeader,
    bind_request,
    context_of,
    register_exception_handlers,
    runtime_lifespan,
)
from forze_memory import MemoryDepsModule

in_one_loop = pytest.mark.asyncio(loop_scope="module")
"""For the tests that share a server."""

VISITS = CounterSpec(name="visits")
MEMBERS = {"ann": {"acme", "umbrella"}, "bob": {"acme"}}


def member_of(authorization: Annotated[str | None, Header()] = None) -> str | None:
    """As it would come from a verified token."""
    return authorization


async def allowed(principal: str, tenant: str) -> bool:
    await asyncio.sleep(0)
    if tenant == "broken":
        raise HTTPException(502, "the directory is away")
    return tenant in MEMBERS.get(principal, ())


async def of_the_host(request: Request) -> UUID | None:
    return UUID(int=7) if request.headers["host"] == "seven.example" else None


BY_HEADER = bind_request(
    tenant=TenantHeader(allowed=allowed), principal=member_of, within_header="X-Within"
)
OTHER_BINDINGS = {
    "strict": bind_request(tenant=of_the_host),
    "loose": bind_request(tenant=of_the_host, required=False),
    "wrong": bind_request(tenant=lambda: 7),
    "within": bind_request(within=timedelta(seconds=100), within_header="X-Within"),
}


def _bound() -> dict[str, Any]:
    return {
        "tenant": current_tenant(),
        "principal": current_principal(),
        "deadline": current_deadline() is not None,
        "transaction": in_transaction(),
    }


NOTHING = {"tenant": None, "principal": None, "deadline": False, "transaction": False}


def _runtime() -> ExecutionRuntime:
    return ExecutionRuntime(
        deps=DepsPlan.from_modules(
            MemoryDepsModule(
                counters={"visits": {"namespace": "app:visits", "tenant_aware": True}}, tx=["notes"]
            )
        )
    )


def _app() -> FastAPI:
    runtime = _runtime()
    app = FastAPI(lifespan=runtime_lifespan(runtime))
    register_exception_handlers(app)
    bound = [Depends(BY_HEADER)]

    @app.get("/bound", dependencies=bound)
    async def asynchronous() -> dict[str, Any]:
        return _bound()

    @app.post("/bound", dependencies=bound)
    async def with_body(request: Request) -> dict[str, Any]:
        size = len(await request.body())
        return {**_bound(), "size": size}

    @app.get("/unbound")
    async def unbound() -> dict[str, Any]:
        return _bound()

    @app.get("/sync", dependencies=bound)
    def sync() -> dict[str, Any]:
        return _bound()

    @app.get("/visits", dependencies=bound)
    async def visits(ctx: Annotated[ExecutionContext, Depends(context_of(runtime))]) -> int:
        return await ctx.counter(VISITS).incr()

    @app.get("/visits-unbound")
    async def visits_unbound(ctx: Annotated[ExecutionContext, Depends(context_of(runtime))]) -> int:
        return await ctx.counter(VISITS).incr()

    async def in_a_transaction(
        ctx: Annotated[ExecutionContext, Depends(context_of(runtime))],
    ) -> AsyncIterator[None]:
        async with ctx.transaction("notes"):
            yield

    @app.get("/transaction", dependencies=[*bound, Depends(in_a_transaction)])
    async def transaction() -> dict[str, Any]:
        return _bound()

    for name, binding in OTHER_BINDINGS.items():
        other = APIRouter(prefix=f"/{name}", dependencies=[Depends(binding)])
        other.get("")(unbound)
        other.get("/bound", dependencies=bound)(unbound)
        other.get("/visits")(visits_unbound)
        app.include_router(other)

    @app.get("/left", dependencies=[Depends(OTHER_BINDINGS["within"])])
    async def left() -> float:
        deadline = current_deadline()
        assert deadline is not None
        return deadline - time.monotonic()

    everybody = asyncio.Barrier(60)

    async def told_in_a_dependency() -> str | None:
        await everybody.wait()
        return current_tenant()

    @app.get("/meet", dependencies=bound)
    async def meet(before: Annotated[str | None, Depends(told_in_a_dependency)]) -> list[Any]:
        await everybody.wait()
        first = current_tenant()
        in_a_thread = await asyncio.to_thread(current_tenant)
        await everybody.wait()
        return [before, first, in_a_thread, current_tenant(), current_principal()]

    told: list[str | None] = []
    done = asyncio.Event()

    def in_a_thread() -> None:
        told.append(current_tenant())

    async def in_the_loop() -> None:
        told.append(current_tenant())
        done.set()

    @app.get("/tasks", dependencies=bound)
    def with_tasks(tasks: BackgroundTasks) -> str:
        tasks.add_task(in_a_thread)
        tasks.add_task(in_the_loop)
        return str(current_tenant())

    @app.get("/told")
    async def what_the_tasks_were_told() -> list[str | None]:
        async with asyncio.timeout(10):
            await done.wait()
        return told

    async def parts() -> AsyncIterator[str]:
        for _ in range(3):
            yield f"{current_tenant()} "
            await asyncio.sleep(0)

    @app.get("/stream", dependencies=bound)
    async def stream() -> StreamingResponse:
        return StreamingResponse(parts())

    @app.websocket("/socket", dependencies=bound)
    async def talk(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_json(_bound())

    return app


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["h11", "httptools"])
async def address(request: pytest.FixtureRequest) -> AsyncIterator[str]:
    async with serving(_app(), http=request.param) as served:
        yield served


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(_app()) as opened:
        yield opened


def _as(principal: str, tenant: str | None) -> dict[str, str]:
    return {"Authorization": principal, **({} if tenant is None else {"X-Tenant-ID": tenant})}


@in_one_loop
async def test_many_interleaved_requests_of_two_tenants(client: httpx.AsyncClient) -> None:
    who = [("ann", "acme"), ("ann", "umbrella"), ("bob", "acme")]
    answers = await asyncio.gather(
        *(client.get("/meet", headers=_as(*who[n % 3])) for n in range(60))
    )
    for number, answer in enumerate(answers):
        principal, tenant = who[number % 3]
        assert answer.json() == [tenant, tenant, tenant, tenant, principal]


@in_one_loop
async def test_a_tenant_sees_its_own_data_only(client: httpx.AsyncClient) -> None:
    for count in (1, 2):
        for tenant in ("acme", "umbrella"):
            answer = await client.get("/visits", headers=_as("ann", tenant))
            assert answer.json() == count
    nobody = await client.get("/visits-unbound", headers=_as("ann", "acme"))
    assert nobody.status_code == 400
    assert nobody.json()["type"] == "urn:forze:problem:tenant-required"


@in_one_loop
async def test_sync_handlers_background_tasks_and_streams(client: httpx.AsyncClient) -> None:
    assert (await client.get("/sync", headers=_as("bob", "acme"))).json()["tenant"] == "acme"
    assert (await client.get("/tasks", headers=_as("bob", "acme"))).json() == "acme"
    told = (await client.get("/told")).json()
    streamed = await client.get("/stream", headers=_as("ann", "umbrella"))
    late = tuple(map(int, fastapi.__version__.split(".")[:2])) >= (0, 118)
    assert told == (["acme"] * 2 if late else [None] * 2)
    assert streamed.text.split() == ["umbrella" if late else "None"] * 3


async def test_a_web_socket_is_bound_while_it_is_open() -> None:
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    app = _app()
    for headers in (_as("ann", "acme"), _as("bob", "umbrella")):
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        scope = {"type": "websocket", "path": "/socket", "headers": raw, "query_string": b"",
                 "subprotocols": []}  # fmt: skip
        await app(scope, receive, send)
    assert [each["type"] for each in sent] == [
        "websocket.accept", "websocket.send", "websocket.close"
    ]  # fmt: skip
    assert json.loads(sent[1]["text"]) == {**NOTHING, "tenant": "acme", "principal": "ann"}
    assert sent[2]["code"] == 1008


@asynccontextmanager
async def _connection(address: str) -> AsyncIterator[tuple[Callable[[], Awaitable[Any]], Any]]:
    """What reads the next answer, and the writer."""
    host, _, port = address.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))

    async def answer() -> Any:
        async with asyncio.timeout(20):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
            return json.loads(await reader.readexactly(length))

    yield answer, writer
    writer.close()


async def _pipelined(address: str, *requests: str) -> list[Any]:
    """The answers to requests that are sent at once on one connection."""
    async with _connection(address) as (answer, writer):
        writer.write("".join(requests).encode())
        return [await answer() for _ in requests]


def _request(path: str, *headers: str) -> str:
    return "\r\n".join((f"GET {path} HTTP/1.1", "Host: x", *headers, "", ""))


ANN = ("Authorization: ann", "X-Tenant-ID: umbrella", "X-Within: 5")


@in_one_loop
async def test_nothing_reaches_the_next_request_of_a_connection(address: str) -> None:
    bound = {"tenant": "umbrella", "principal": "ann", "deadline": True}
    first, *rest = await _pipelined(
        address,
        _request("/transaction", *ANN),
        _request("/unbound"),
        _request("/sync", "Authorization: bob", "X-Tenant-ID: acme"),
        _request("/unbound"),
        _request("/visits-unbound"),
    )
    assert first == {**bound, "transaction": True}
    assert rest[0] == rest[2] == NOTHING
    assert rest[1] == {**NOTHING, "tenant": "acme", "principal": "bob"}
    assert rest[3]["type"] == "urn:forze:problem:tenant-required"


@in_one_loop
async def test_nothing_reaches_what_follows_a_large_body(address: str) -> None:
    """The server pauses reading, and whoever resumes it lends its context to what is read next."""
    size = 2_000_000
    post = "\r\n".join(("POST /bound HTTP/1.1", "Host: x", *ANN, f"Content-Length: {size}", "", ""))
    async with _connection(address) as (answer, writer):
        writer.write(post.encode() + b"x" * size)
        assert (await answer())["size"] == size
        for _ in range(3):
            writer.write(_request("/unbound").encode())
            assert await answer() == NOTHING


async def test_a_request_within_a_request_leaves_what_was_bound() -> None:
    """A client that calls the application in its own task, as tests and gateways do."""
    runtime = _runtime()
    app = FastAPI(lifespan=runtime_lifespan(runtime))

    @app.get("/")
    async def inner() -> dict[str, Any]:
        return _bound()

    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as inside,
    ):
        ctx = runtime.get_context()
        with ctx.bind_tenant("acme"), ctx.bind_principal("ann"):
            async with ctx.transaction("notes"):
                assert (await inside.get("/")).json() == NOTHING
                assert _bound() == {
                    "tenant": "acme", "principal": "ann", "deadline": False, "transaction": True
                }  # fmt: skip


REFUSED = [
    (_as("ann", None), 400, "tenant-required"),
    (_as("ann", ""), 400, "tenant-required"),
    ({}, 400, "tenant-required"),
    (_as("bob", "umbrella"), 403, "tenant-forbidden"),
    (_as("eve", "acme"), 403, "tenant-forbidden"),
    ({"X-Tenant-ID": "acme"}, 403, "tenant-forbidden"),
    (_as("ann", "ac\tme"), 400, "tenant-malformed"),
    (_as("ann", "x" * 300), 400, "tenant-malformed"),
    (_as("ann", "ac\x85me"), 400, "tenant-malformed"),
    (_as("x" * 300, "acme"), 400, "principal-malformed"),
]


@pytest.mark.parametrize("path", ["/bound", "/sync", "/visits"])
@in_one_loop
async def test_a_tenant_that_is_missing_forged_or_malformed(
    client: httpx.AsyncClient, path: str
) -> None:
    for headers, status, kind in REFUSED:
        raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        answer = await client.get(path, headers=raw)
        assert (answer.status_code, answer.headers["content-type"]) == (
            status, "application/problem+json"
        )  # fmt: skip
        assert answer.json()["type"] == f"urn:forze:problem:{kind}"
        assert not any(len(each) > 3 and each in answer.text for each in headers.values())


@in_one_loop
async def test_a_header_that_is_sent_twice_is_neither(client: httpx.AsyncClient) -> None:
    for one, two in (("acme", "umbrella"), ("umbrella", "acme"), ("acme", "acme"), ("", "acme")):
        answer = await client.get(
            "/bound", headers=[("Authorization", "bob"), ("X-Tenant-ID", one), ("x-tenant-Id", two)]
        )
        assert answer.status_code == 400
        assert answer.json()["type"] == "urn:forze:problem:tenant-malformed"


@in_one_loop
async def test_a_check_that_fails_lets_nobody_through(client: httpx.AsyncClient) -> None:
    answer = await client.get("/bound", headers=_as("ann", "broken"))
    assert (answer.status_code, answer.json()["detail"]) == (502, "the directory is away")


@in_one_loop
async def test_a_tenant_from_a_source_of_ones_own(client: httpx.AsyncClient) -> None:
    assert (await client.get("/strict")).status_code == 400
    seven = await client.get("/strict", headers={"Host": "seven.example"})
    assert seven.json() == {**NOTHING, "tenant": str(UUID(int=7))}
    assert (await client.get("/loose")).json() == NOTHING
    assert (await client.get("/loose/visits")).status_code == 400


@in_one_loop
async def test_a_source_that_gives_something_else_is_a_fault_of_the_program(
    client: httpx.AsyncClient,
) -> None:
    answer = await client.get("/wrong")
    assert answer.json()["type"] == "urn:forze:problem:configuration"


@in_one_loop
async def test_bindings_of_application_and_route_add_up(client: httpx.AsyncClient) -> None:
    deadline = {**NOTHING, "deadline": True}
    assert (await client.get("/within", headers=_as("ann", "acme"))).json() == deadline
    assert (await client.get("/within/bound", headers=_as("ann", "acme"))).json() == {
        **deadline, "tenant": "acme", "principal": "ann"
    }  # fmt: skip


@in_one_loop
async def test_a_deadline_can_only_be_shortened_by_the_caller(client: httpx.AsyncClient) -> None:
    async def seconds(said: str | None) -> float | str:
        answer = await client.get("/left", headers={} if said is None else {"X-Within": said})
        content = answer.json()
        return str(content["type"]) if isinstance(content, dict) else float(content)

    for said, most in ((None, 100.0), ("500", 100.0), ("30.5", 30.5)):
        found = await seconds(said)
        assert isinstance(found, float)
        assert most - 20 < found <= most
    for said in ("0", "-1", "nan", "inf", "soon", "1e9"):
        assert await seconds(said) == "urn:forze:problem:deadline-malformed"


def test_the_document_has_the_headers_and_the_refusals() -> None:
    paths = _app().openapi()["paths"]
    parameters = paths["/bound"]["get"]["parameters"]
    assert {each["name"] for each in parameters} == {"X-Tenant-ID", "X-Within", "authorization"}
    assert not any(each["required"] for each in parameters)
    said = {
        path: set(paths[path]["get"]["responses"]) for path in ("/bound", "/strict", "/unbound")
    }
    assert said == {
        "/bound": {"200", "400", "403", "422"}, "/strict": {"200", "400"}, "/unbound": {"200"}
    }  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"tenant": TenantHeader(allowed=allowed)}, "needs principal="),
        ({"tenant": "acme"}, "a dependency that gives it, not 'acme'"),
        ({"principal": 7}, "a dependency that gives it, not 7"),
        ({"within": timedelta(0)}, "above zero"),
        ({"within": 5}, "above zero"),
    ],
)
def test_wrong_wiring(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        bind_request(**wrong)
    with pytest.raises(ConfigurationError, match="allowed is a function"):
        TenantHeader(allowed=None)  # type: ignore[arg-type]


async def test_fresh_requests_without_the_lifespan() -> None:
    app = FastAPI()
    app.add_middleware(FreshRequests)
    register_exception_handlers(app)
    bound = bind_request(tenant=lambda: "acme")

    @app.get("/bound", dependencies=[Depends(bound)])
    async def with_tenant() -> dict[str, Any]:
        return _bound()

    @app.get("/unbound")
    async def without() -> dict[str, Any]:
        return _bound()

    async with serving(app) as address:
        answers = await _pipelined(address, _request("/bound"), _request("/unbound"))
    assert answers == [{**NOTHING, "tenant": "acme"}, NOTHING]


def test_what_a_request_may_find_bound_has_our_name_and_a_default() -> None:
    """Otherwise nothing would put it back at the start of the next one."""
    made = [
        (shown(path), node)
        for path in files(".py", under="src")
        if "ContextVar" in (source := path.read_text())
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("ContextVar")
    ]
    assert len(made) > 5
    for where, node in made:
        (name,) = node.args
        assert isinstance(name, ast.Constant), where
        assert str(name.value).startswith("forze_"), where
        assert "default" in {each.arg for each in node.keywords}, where


# -- the limit of bodies -----------------------------------------------------


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def limited() -> AsyncIterator[httpx.AsyncClient]:
    app = FastAPI()
    register_exception_handlers(app)

    @app.post("/sizes")
    async def sizes(body: list[int]) -> int:
        return len(body)

    @app.post("/lenient")
    async def lenient(request: Request) -> dict[str, int]:
        try:
            return {"size": len(await request.body())}
        except Exception:
            return {"size": -1}

    seen = asyncio.Event()

    @app.post("/stream")
    async def stream(request: Request) -> int:
        size = 0
        async for each in request.stream():
            size += len(each)
            seen.set()
        return size

    @app.get("/seen")
    async def something_was_seen() -> None:
        async with asyncio.timeout(10):
            await seen.wait()

    app.add_middleware(BodyLimit, max_bytes=1000)
    async with client_of(app) as client:
        yield client


async def _chunks(count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b" " * 100
        await asyncio.sleep(0)


@pytest.mark.parametrize("path", ["/sizes", "/lenient"])
@pytest.mark.parametrize("announced", [True, False])
@in_one_loop
async def test_a_body_above_the_limit(
    limited: httpx.AsyncClient, path: str, announced: bool
) -> None:
    content: Any = b" " * 1001 if announced else _chunks(11)
    answer = await limited.post(path, content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 413
    assert answer.headers["content-type"] == "application/problem+json"
    told = answer.json()
    assert (told["type"], told["max_bytes"]) == ("urn:forze:problem:body-too-large", 1000)


@in_one_loop
async def test_a_body_at_the_limit(limited: httpx.AsyncClient) -> None:
    for content in (b" " * 1000, _chunks(10)):
        assert (await limited.post("/lenient", content=content)).json() == {"size": 1000}
    assert (await limited.post("/sizes", json=[1, 2])).json() == 2


@in_one_loop
async def test_a_stream_is_not_gathered(limited: httpx.AsyncClient) -> None:
    async def two_parts() -> AsyncIterator[bytes]:
        yield b"one"
        await limited.get("/seen")  # the application has it before the rest is sent
        yield b"two"

    assert (await limited.post("/stream", content=two_parts())).json() == 6


def test_a_limit_is_a_number_of_bytes() -> None:
    with pytest.raises(ConfigurationError, match="max_bytes"):
        BodyLimit(FastAPI(), max_bytes=-1)
