"""Cached responses over real sockets: one run per key, and no answer for whom it was not made."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import httpx
import pytest
import pytest_asyncio
from fastapi import (
    APIRouter,
    BackgroundTasks,
    Cookie,
    Depends,
    FastAPI,
    Header,
    HTTPException,
    Request,
    Response,
)
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from pydantic import BaseModel
from starlette.background import BackgroundTask

from forze.application.contracts.cache import CACHED, CacheSpec
from forze.application.contracts.tenancy import current_principal, current_tenant
from forze.application.execution import (
    DepsPlan,
    ExecutionContext,
    ExecutionRuntime,
    LifecyclePlan,
)
from forze.errors import ConfigurationError
from forze.testing.servers import ValkeyServer
from forze.testing.serving import client_of
from forze_fastapi import (
    bind_request,
    cached_response,
    register_exception_handlers,
    runtime_lifespan,
)
from forze_fastapi.response_cache.exchange import _caller
from forze_memory import MemoryDepsModule
from forze_redis import RedisClient, RedisDepsModule, redis_lifecycle_step

if TYPE_CHECKING:
    from collections.abc import Mapping

pytestmark = pytest.mark.asyncio(loop_scope="module")

MINUTE = timedelta(seconds=60)


class Product(BaseModel):
    id: int
    price: int
    secret: str = "purchase price"


class Shown(BaseModel):
    id: int
    price: int


class Session:
    """What no key can be made of."""


def session() -> Session:
    return Session()


def user(x_user: Annotated[str, Header()] = "nobody") -> str:
    return x_user


def numbered(request: Request, response: Response) -> None:
    """A header of each request's own, as limits set them."""
    response.headers["x-request"] = request.headers.get("x-request", "-")


def signed_in(response: Response, x_user: Annotated[str, Header()]) -> None:
    """A cookie of each caller's own."""
    response.set_cookie("session", x_user)


def cautious(response: Response) -> None:
    """What a dependency says of the answer to its request."""
    response.headers.update({"cache-control": "no-store", "vary": "x-seen"})


class Shop:
    """The handlers' source."""

    def __init__(self) -> None:
        self.open()

    def open(self) -> None:
        """Begin anew."""
        self.price = 10
        self.runs = 0
        self.reached = asyncio.Event()
        self.go = asyncio.Event()
        self.go.set()

    async def run(self) -> int:
        """One run of a handler."""
        self.runs += 1
        self.reached.set()
        await self.go.wait()
        return self.price


def routes(runtime: ExecutionRuntime, shop: Shop) -> APIRouter:
    """Routes of every kind."""
    router = APIRouter()
    context = Depends(runtime.get_context)

    @router.get("/products/{id}", response_model=Shown, dependencies=[Depends(numbered)])
    @cached_response(MINUTE, ctx_dep=runtime.get_context, tags=["products", "product:{id}"])
    async def product(id: int, currency: str = "EUR", ctx: ExecutionContext = context) -> Product:
        return Product(id=id, price=await shop.run())

    @router.put("/products/{id}")
    async def reprice(id: int, price: int, ctx: ExecutionContext = context) -> None:
        shop.price = price
        await ctx.invalidate_tags(f"product:{id}")

    @router.api_route("/sync", methods=["GET", "HEAD", "POST"], status_code=203)
    @cached_response(60)
    def sync(response: Response) -> list[int]:
        shop.runs += 1
        response.headers["link"] = "<a>; rel=next"
        response.headers["x-private"] = "yes"
        return [shop.runs]

    @router.get("/fails/{status}")
    @cached_response(60)
    async def fails(status: int) -> Any:
        run = await shop.run()
        if status == 500:
            raise RuntimeError
        if status == 404:
            raise HTTPException(404)
        return PlainTextResponse(str(run), status)

    @router.get("/personal/{how}")
    @cached_response(60)
    async def personal(how: str, response: Response) -> Any:
        await shop.run()
        mine = PlainTextResponse(f"run {shop.runs}")
        if how == "cookie":
            mine.set_cookie("session", str(shop.runs))
        elif how == "injected cookie":
            response.set_cookie("session", str(shop.runs))
            return f"run {shop.runs}"
        elif how == "stream":
            return StreamingResponse(iter([f"run {shop.runs}"]))
        elif how == "vary":
            mine.headers["vary"] = "accept"
            mine.headers.append("vary", "*")
        else:
            mine.headers["cache-control"] = how
        return mine

    @router.get("/statuses/{status}")
    @cached_response(60, statuses=[200, 404])
    async def with_status(status: int) -> Response:
        await shop.run()
        return PlainTextResponse("here or not", status)

    @router.get("/cautious", dependencies=[Depends(cautious)])
    @cached_response(60, vary=["x-mine"])
    async def with_caution() -> int:
        return await shop.run()

    always = PlainTextResponse("always", headers={"cache-control": "no-store"})

    @router.get("/always", dependencies=[Depends(signed_in)])
    @cached_response(60)
    async def one_object() -> Response:
        return always

    @router.get("/own")
    @cached_response(60)
    async def own() -> Any:
        await shop.run()
        return PlainTextResponse(
            "own", headers={"etag": '"mine"', "cache-control": "max-age=5", "vary": "accept"}
        )

    @router.get("/dependency")
    @cached_response(60, ignore=(Session,))
    async def dependency(
        who: Annotated[str, Depends(user)], held: Annotated[Session, Depends(session)]
    ) -> str:
        await shop.run()
        return who

    @router.get("/parameters")
    @cached_response(60)
    async def parameters(
        q: int | None = None,
        x_user: Annotated[str, Header()] = "nobody",
        session: Annotated[str, Cookie()] = "none",
    ) -> list[Any]:
        await shop.run()
        return [q, x_user, session]

    @router.get("/request")
    @cached_response(60, vary=["Accept-Language"])
    async def whole(request: Request) -> dict[str, Any]:
        await shop.run()
        return {
            "headers": dict(request.headers),
            "cookies": request.cookies,
            "client": request.client,
            "user": getattr(request.state, "user", None),
            "url": str(request.url),
            "body": (await request.body()).decode(),
        }

    @router.api_route("/asked", methods=["GET", "HEAD"])
    @cached_response(60, headers=["x-link"])
    async def asked(request: Request) -> Response:
        await shop.run()
        parameters = request.query_params
        link = {"x-link": str(request.url_for("asked"))}
        text = f"{request.method} {parameters.get('a')} {parameters.getlist('a')}"
        return PlainTextResponse(text, headers=link)

    @router.get("/cookies")
    @cached_response(60)
    async def cookies(request: Request) -> Response:
        await shop.run()
        return JSONResponse(request.cookies, headers={"cache-control": "no-store"})

    @router.get("/unresolved", response_model=None)
    @cached_response(60)
    async def unresolved(request: Request) -> Mapping[str, str]:
        await shop.run()
        return request.cookies

    @router.get("/since")
    @cached_response(60)
    async def since(at: datetime) -> datetime:
        await shop.run()
        return at

    @router.get("/another")
    async def another(currency: str) -> Any:
        return await product(7, currency=currency, ctx=runtime.get_context())

    async def bound() -> list[str | None]:
        await shop.run()
        return [current_tenant(), current_principal()]

    def tenant_of(x_tenant: Annotated[str | None, Header()] = None) -> str | None:
        return x_tenant

    def principal_of(x_user: Annotated[str | None, Header()] = None) -> str | None:
        return x_user

    binding = [Depends(bind_request(tenant=tenant_of, principal=principal_of, required=False))]
    for per in ("principal", "tenant", None):
        cached: Any = cached_response(60, per=per, public=True, name=f"bound {per}")(bound)
        router.get(f"/bound/{per}", dependencies=binding)(cached)

    @router.get("/client")
    @cached_response(60, max_age=0, obey_request=True)
    async def asking() -> int:
        return await shop.run()

    @router.get("/background")
    @cached_response(60)
    async def background(tasks: BackgroundTasks) -> int:
        tasks.add_task(setattr, shop, "price", 99)
        return await shop.run()

    @router.get("/background/own")
    @cached_response(60)
    async def own_background() -> Response:
        return JSONResponse(await shop.run(), background=BackgroundTask(setattr, shop, "price", 99))

    return router


@asynccontextmanager
async def app_of(
    shop: Shop, dsn: str | None = None, runtime: ExecutionRuntime | None = None
) -> AsyncIterator[httpx.AsyncClient]:
    """The application, served; without ``dsn`` with the given runtime."""
    if runtime is None:
        redis = RedisDepsModule(client=RedisClient(), caches={"cached": {"namespace": "app:web"}})
        runtime = ExecutionRuntime(
            deps=DepsPlan.from_modules(redis),
            lifecycle=LifecyclePlan.from_steps(redis_lifecycle_step(dsn=str(dsn))),
        )
    app = FastAPI(lifespan=runtime_lifespan(runtime))
    app.include_router(routes(runtime, shop))

    @app.middleware("http")
    async def authenticated(request: Request, call_next: Any) -> Any:
        request.state.user = "left by a middleware"
        return await call_next(request)

    async with client_of(app) as client:
        yield client


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served() -> AsyncIterator[tuple[Shop, ExecutionRuntime, httpx.AsyncClient]]:
    """In memory, for all of them."""
    shop, runtime = Shop(), ExecutionRuntime(deps=DepsPlan.from_modules(MemoryDepsModule()))
    async with app_of(shop, runtime=runtime) as client:
        yield shop, runtime, client


@pytest.fixture
def shop(served: tuple[Shop, ExecutionRuntime, httpx.AsyncClient]) -> Shop:
    served[0].open()
    return served[0]


@pytest_asyncio.fixture(loop_scope="module")
async def client(
    shop: Shop, served: tuple[Shop, ExecutionRuntime, httpx.AsyncClient]
) -> httpx.AsyncClient:
    """With nothing cached."""
    _, runtime, client = served
    pointers = runtime.get_context().cache(CACHED).tags().pointers
    await pointers.clear(pointers.namespace())
    client.cookies.clear()
    return client


def status_of(response: httpx.Response) -> str:
    return response.headers["cache-status"]


async def test_one_run_for_a_key(client: httpx.AsyncClient, shop: Shop) -> None:
    first = await client.get("/products/1", headers={"x-request": "a"})
    second = await client.get("/products/1?currency=EUR&utm=x", headers={"x-request": "b"})
    assert first.json() == second.json() == {"id": 1, "price": 10}
    assert (first.headers["x-request"], second.headers["x-request"]) == ("a", "b")
    assert "fwd=uri-miss" in status_of(first)
    assert status_of(second).startswith("forze;hit;ttl=5")
    assert first.headers["etag"] == second.headers["etag"]
    assert second.headers["cache-control"] in ("private, max-age=59", "private, max-age=58")
    assert "age" not in second.headers
    await client.get("/products/2")
    await client.get("/products/1?currency=USD")
    assert shop.runs == 3


async def test_callers_at_once_share_a_run(client: httpx.AsyncClient, shop: Shop) -> None:
    shop.go.clear()
    calls = [asyncio.create_task(client.get("/products/1")) for _ in range(20)]
    await shop.reached.wait()
    await asyncio.sleep(0.05)
    shop.go.set()
    answers = await asyncio.gather(*calls)
    assert {each.text for each in answers} == {'{"id":1,"price":10}'}
    assert shop.runs == 1
    assert sum("stored" in status_of(each) for each in answers) == 1


async def test_tags_invalidate_from_a_handler(client: httpx.AsyncClient, shop: Shop) -> None:
    first = await client.get("/products/1")
    await client.get("/products/2")
    assert (await client.put("/products/1?price=11")).status_code == 200
    again = await client.get("/products/1", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.json()["price"]) == (200, 11)
    assert (await client.get("/products/2")).json()["price"] == 10
    assert shop.runs == 3


async def test_a_304_costs_no_run_and_has_no_body(client: httpx.AsyncClient, shop: Shop) -> None:
    tag = (await client.get("/products/1")).headers["etag"]
    for asked in (tag, f"W/{tag}", f'"x", {tag}', "*"):
        answer = await client.get("/products/1", headers={"if-none-match": asked})
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["etag"] == tag
        assert {"cache-control", "date"} <= answer.headers.keys()
        assert "content-type" not in answer.headers
    for asked in ('"other"', "malformed"):
        answer = await client.get("/products/1", headers={"if-none-match": asked})
        assert (answer.status_code, answer.json()["id"]) == (200, 1)
    assert shop.runs == 1


async def test_the_304_is_in_the_document() -> None:
    app = FastAPI()
    register_exception_handlers(app)

    @app.get("/greeting")
    @app.post("/greeting")
    @cached_response(60)
    async def greeting() -> str:
        return "hello"

    answers = app.openapi()["paths"]["/greeting"]
    assert "304" in answers["get"]["responses"]
    assert "304" not in answers["post"]["responses"]


async def test_two_processes_answer_alike(valkey: ValkeyServer, valkey_dsn: str) -> None:
    shop = Shop()
    async with app_of(shop, valkey_dsn) as one, app_of(shop, valkey_dsn) as other:
        first, second = await one.get("/products/1"), await other.get("/products/1")
        assert first.headers["etag"] == second.headers["etag"]
        assert "hit" in status_of(second)
        valkey.ask("FLUSHALL")
        third = await other.get("/products/1")
        assert third.headers["etag"] == first.headers["etag"], "made anew, of the same bytes"
        assert shop.runs == 2
        shop.price = 12
        await one.put("/products/1?price=12")
        assert (await other.get("/products/1")).json()["price"] == 12


async def test_without_redis_the_handler_runs(own_valkey: ValkeyServer) -> None:
    shop = Shop()
    async with app_of(shop, own_valkey.dsn) as client:
        await client.get("/products/1")
        own_valkey.kill()
        for run in (2, 3):
            assert (await client.get("/products/1")).json()["price"] == 10
            assert shop.runs == run


async def test_a_sync_handler(client: httpx.AsyncClient, shop: Shop) -> None:
    first, second = await client.get("/sync"), await client.get("/sync")
    assert (first.status_code, first.json()) == (second.status_code, second.json()) == (203, [1])
    assert second.headers["link"] == "<a>; rel=next"
    assert "x-private" not in second.headers
    head = await client.head("/sync")
    assert (head.status_code, head.content) == (203, b"")
    assert head.headers["etag"] == first.headers["etag"]
    assert head.headers["content-length"] == "3"
    assert (await client.post("/sync")).json() == [2]
    assert (await client.get("/sync")).json() == [1]


async def test_failures_are_not_kept(client: httpx.AsyncClient, shop: Shop) -> None:
    for status in (500, 404, 404, 202, 503, 503, 206, 206, 301, 301):
        answer = await client.get(f"/fails/{status}", follow_redirects=False)
        assert answer.status_code == status
    assert shop.runs == 10
    await client.get("/fails/202")
    assert shop.runs == 10


@pytest.mark.parametrize(
    "how", ["cookie", "injected cookie", "stream", "vary", "no-store", "private, max-age=5"]
)
async def test_what_is_for_one_caller_is_given_to_no_other(
    client: httpx.AsyncClient, shop: Shop, how: str
) -> None:
    shop.go.clear()
    calls = [asyncio.create_task(client.get(f"/personal/{how}")) for _ in range(5)]
    await shop.reached.wait()
    await asyncio.sleep(0.05)
    shop.go.set()
    answers = [*await asyncio.gather(*calls), await client.get(f"/personal/{how}")]
    assert len({each.text for each in answers}) == 6
    assert shop.runs == 6
    if "cookie" in how:
        assert len({each.headers["set-cookie"] for each in answers}) == 6
        for each in answers:
            assert each.text.strip('"').endswith(each.headers["set-cookie"][len("session=")])


async def test_one_response_given_to_all_takes_nothing_along(client: httpx.AsyncClient) -> None:
    for who in ("ann", "bob"):
        answer = await client.get("/always", headers={"x-user": who})
        cookies = answer.headers.get_list("set-cookie", split_commas=False)
        assert [each.split(";")[0] for each in cookies] == [f"session={who}"]


async def test_what_a_response_says_of_itself_stands(client: httpx.AsyncClient) -> None:
    for _ in range(2):
        answer = await client.get("/own")
        assert answer.headers["etag"] == '"mine"'
        assert answer.headers["cache-control"] == "max-age=5"
        assert answer.headers["vary"] == "accept"
    for _ in range(2):
        answer = await client.get("/cautious")
        assert answer.headers["cache-control"] == "no-store", "its dependency says so"
        assert answer.headers.get_list("vary") == ["x-seen, x-mine"]


async def test_only_what_is_there_is_not_modified(client: httpx.AsyncClient, shop: Shop) -> None:
    for status, then in ((200, 304), (404, 404)):
        tag = (await client.get(f"/statuses/{status}")).headers["etag"]
        for asked in (tag, "*"):
            again = await client.get(f"/statuses/{status}", headers={"if-none-match": asked})
            assert again.status_code == then
    assert shop.runs == 2


async def test_every_argument_is_part_of_the_key(client: httpx.AsyncClient, shop: Shop) -> None:
    for name in ("ann", "bob", "ann"):
        assert (await client.get("/dependency", headers={"x-user": name})).json() == name
    assert shop.runs == 2
    asked: list[dict[str, Any]] = [
        {}, {"params": {"q": 1}}, {"headers": {"x-user": "ann"}},
        {"headers": {"cookie": "session=mine"}},
    ]  # fmt: skip
    answers = [(await client.get("/parameters", **each)).json() for each in asked * 2]
    assert answers == [
        [None, "nobody", "none"], [1, "nobody", "none"], [None, "ann", "none"],
        [None, "nobody", "mine"],
    ] * 2  # fmt: skip
    assert shop.runs == 6


async def test_a_handler_sees_nothing_that_is_not_in_the_key(
    client: httpx.AsyncClient, shop: Shop
) -> None:
    mine = {"authorization": "Bearer mine", "cookie": "session=mine", "accept-language": "de"}
    first = (await client.get("/request?b=2&a=1", headers=mine)).json()
    host = client.base_url.netloc.decode()
    assert first == {
        "headers": {"accept-language": "de", "host": host}, "cookies": {}, "client": None,
        "user": None, "url": f"http://{host}/request?a=1&b=2", "body": "",
    }  # fmt: skip
    yours = await client.get("/request?a=1&b=2", headers={"accept-language": "de"})
    assert yours.json() == first
    assert yours.headers["vary"] == "accept-language"
    await client.get("/request?a=1&b=2", headers={"accept-language": "en"})
    await client.get("/request?a=1&b=3", headers={"accept-language": "de"})
    await client.get("/request?a=1&b=2", headers={"accept-language": "de", "host": "other"})
    assert shop.runs == 4


async def test_what_it_sees_of_the_request_is_the_key(
    client: httpx.AsyncClient, shop: Shop
) -> None:
    assert (await client.head("/asked?a=1&a=2")).headers["content-length"] == "16"
    first = await client.get("/asked?a=1&a=2")
    assert first.text == "GET 2 ['1', '2']", "not what a HEAD would have been answered with"
    assert first.headers["x-link"] == str(client.base_url) + "/asked"
    assert (await client.get("/asked?a=%31&b=&a=2")).text == first.text
    assert (await client.get("/asked?b=&a=1&a=2")).text == first.text
    assert shop.runs == 2
    assert (await client.get("/asked?a=2&a=1")).text == "GET 1 ['2', '1']"
    assert (
        (await client.get("/asked?a=", headers={"host": "b"}))
        .headers["x-link"]
        .startswith("http://b/")
    )


async def test_what_is_not_shared_is_made_alike_for_all(
    client: httpx.AsyncClient, shop: Shop
) -> None:
    shop.go.clear()
    asked = [
        asyncio.create_task(client.get("/cookies", headers={"cookie": f"a={n}"})) for n in range(3)
    ]
    await shop.reached.wait()
    await asyncio.sleep(0.05)
    shop.go.set()
    assert [each.json() for each in await asyncio.gather(*asked)] == [{}] * 3
    assert shop.runs == 3


async def test_an_annotation_only_for_type_checkers_lets_nobody_see_more(
    client: httpx.AsyncClient, shop: Shop
) -> None:
    for who in ("ann", "bob"):
        assert (await client.get("/unresolved", headers={"cookie": f"user={who}"})).json() == {}
    assert shop.runs == 1


async def test_a_moment_is_an_argument_like_any_other(
    client: httpx.AsyncClient, shop: Shop
) -> None:
    for at in ("2024-01-01T12:00:00Z", "2024-01-01T12:00:00+01:00", "2024-01-01T12:00:00Z"):
        answer = await client.get("/since", params={"at": at})
        assert (answer.status_code, answer.json()) == (200, at.replace("+00:00", "Z"))
    assert shop.runs == 2


async def test_called_directly_a_handler_is_what_it_was(
    client: httpx.AsyncClient, shop: Shop
) -> None:
    for runs in (1, 2):
        answer = await client.get("/another?currency=USD")
        assert answer.json() == {"id": 7, "price": 10, "secret": "purchase price"}
        assert shop.runs == runs


async def test_a_browser_gives_nobody_what_it_has_of_another(client: httpx.AsyncClient) -> None:
    """Who is signed in may change, and the URL does not."""
    for headers in ({"cookie": "session=mine"}, {"authorization": "Bearer mine"}):
        answer = await client.get("/products/1", headers=headers)
        assert answer.headers["cache-control"] == "private, no-cache"
    answer = await client.get("/products/1")
    assert answer.headers["cache-control"].startswith("private, max-age=5")
    answer = await client.get("/bound/None", headers={"cookie": "session=mine"})
    assert answer.headers["cache-control"].startswith("public, max-age=5")
    answer = await client.get("/bound/principal", headers={"x-user": "ann"})
    assert answer.headers["cache-control"] == "private, no-cache"


async def test_nobody_gets_what_was_made_for_another(client: httpx.AsyncClient, shop: Shop) -> None:
    callers: list[dict[str, str]] = [
        {}, {"x-user": "ann"}, {"x-user": "bob"}, {"x-user": "ann", "x-tenant": "t"},
    ]  # fmt: skip
    expected: dict[str, tuple[list[list[str | None]], int]] = {
        "principal": ([[None, None], [None, "ann"], [None, "bob"], ["t", "ann"]], 4),
        "tenant": ([[None, None], [None, None], [None, None], ["t", None]], 2),
        "None": ([[None, None]] * 4, 1),
    }
    for per, (answers, runs) in expected.items():
        before = shop.runs
        for _ in range(2):
            found = [await client.get(f"/bound/{per}", headers=each) for each in callers]
            assert [each.json() for each in found] == answers
            for headers, answer in zip(callers, found, strict=True):
                of = {"principal": "x-user", "tenant": "x-tenant"}.get(per)
                personal = of in headers
                control = answer.headers["cache-control"]
                assert control.startswith("private" if personal else "public")
        assert shop.runs == before + runs


async def test_a_request_may_ask_for_more(client: httpx.AsyncClient, shop: Shop) -> None:
    first = await client.get("/client")
    assert first.headers["cache-control"] == "private, no-cache"
    for price, control, expected in (
        (11, "max-age=60", 10), (11, "no-store", 11), (12, "max-age=9", 10), (13, "no-cache", 13),
        (14, "max-age=5", 13), (15, "max-age=0", 15),
    ):  # fmt: skip
        shop.price = price
        answer = await client.get("/client", headers={"cache-control": control})
        assert answer.json() == expected, control
    shop.price = 16
    hurried = await client.get("/products/1", headers={"cache-control": "no-cache"})
    again = await client.get("/products/1", headers={"cache-control": "no-cache"})
    assert "hit" in status_of(again)
    assert hurried.json() == again.json()


async def test_background_tasks_run_once_with_the_handler(
    client: httpx.AsyncClient, shop: Shop
) -> None:
    for path in ("/background", "/background/own"):
        shop.price = 10
        assert (await client.get(path)).json() == 10
        async with asyncio.timeout(5):
            while shop.price != 99:
                await asyncio.sleep(0.005)
        shop.price = 5
        assert (await client.get(path)).json() == 10
        assert shop.price == 5


async def test_what_cannot_be_keyed_is_refused_when_the_route_is_made() -> None:
    async def with_session(held: Annotated[Session, Depends(session)]) -> None: ...

    async def stream() -> AsyncIterator[bytes]:
        yield b""

    async def fine(n: int) -> None: ...

    mistakes: list[tuple[Any, dict[str, Any], str]] = [
        (with_session, {}, "'held'.*Session"), (stream, {}, "generator"),
        (fine, {"ttl": -1}, "ttl"), (fine, {"max_age": -1}, "ttl"), (fine, {"tags": "{m}"}, "'m'"),
        (fine, {"per": "user"}, "per"), (fine, {"vary": "accept"}, "vary"),
        (fine, {"cache": CacheSpec(name="x"), "ttl": "1"}, "ttl"), (fine, {"ignore": "m"}, "'m'"),
    ]  # fmt: skip
    for handler, options, said in mistakes:
        with pytest.raises(ConfigurationError, match=said):
            cached_response(**{"ttl": 60, **options})(handler)


async def test_without_a_runtime_it_says_what_to_do() -> None:
    app = FastAPI()

    @app.get("/")
    @cached_response(60)
    async def root() -> int:
        return 1

    async with client_of(app) as client:
        assert (await client.get("/")).status_code == 500


async def test_a_server_that_gives_headers_as_lists() -> None:
    """As some adapters of functions-as-a-service do; the key is that of any other server."""
    app, runs = FastAPI(lifespan=runtime_lifespan(_in_memory())), []

    @app.get("/")
    @cached_response(60, vary=["x-shown"])
    async def root(request: Request) -> str:
        runs.append(1)
        return request.headers["x-shown"]

    async def adapted(scope: Any, receive: Any, send: Any) -> None:
        if any(name == b"x-listed" for name, _ in scope.get("headers", ())):
            scope["headers"] = [list(each) for each in scope["headers"]]
        await app(scope, receive, send)

    async with client_of(adapted) as client:
        for headers in ({}, {"x-listed": "yes"}):
            answer = await client.get("/", headers={"x-shown": "a", **headers})
            assert (answer.status_code, answer.json()) == (200, "a")
    assert len(runs) == 1


async def test_what_requests_say_is_not_kept_beside_the_cache(
    client: httpx.AsyncClient,
) -> None:
    """Neither for its size nor for what it may be: a token that varies is somebody's."""
    for number in range(3):
        said = {"accept-language": f"l{number}", "host": f"h{number}"}
        assert (await client.get(f"/request?q={number}", headers=said)).status_code == 200
        if number == 0:
            remembered = _caller.cache_info().currsize
    assert _caller.cache_info().currsize == remembered


async def test_a_dependency_that_gives_no_context_is_not_replaced() -> None:
    app, runs = FastAPI(lifespan=runtime_lifespan(_in_memory())), []

    @app.get("/")
    @cached_response(60, ctx_dep=lambda: None)  # type: ignore[arg-type,return-value]
    async def root() -> None:
        runs.append(1)

    async with client_of(app) as client:
        assert (await client.get("/")).status_code == 500
    assert not runs


def _in_memory() -> ExecutionRuntime:
    return ExecutionRuntime(deps=DepsPlan.from_modules(MemoryDepsModule()))
