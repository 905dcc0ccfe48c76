"""Rate limits of routes over real sockets: how many get through, and what the answers say."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from itertools import product
from typing import Any

import http_sf
import httpx
import pytest
import pytest_asyncio
from fastapi import Depends, FastAPI
from fastapi.requests import HTTPConnection
from tests.http.limited import limited, on_server

from forze.application.contracts.resilience import RateLimitDecision, RateLimitStrategy
from forze.application.contracts.tenancy import bind_principal, bind_tenant
from forze.errors import ConfigurationError
from forze.testing.servers import ValkeyServer
from forze.testing.serving import client_of, serving
from forze_fastapi import RateLimit, caller
from forze_fastapi.quota_fields import Quota, fields_of, quota_of

in_one_loop = pytest.mark.asyncio(loop_scope="module")

PROBLEMS = "https://iana.org/assignments/http-problem-types#"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def address() -> AsyncIterator[str]:
    async with serving(limited()[0]) as address:
        yield address


@pytest_asyncio.fixture(loop_scope="module")
async def one(address: str, request: pytest.FixtureRequest) -> AsyncIterator[httpx.AsyncClient]:
    """A caller whose buckets are nobody else's."""
    who = {"X-User": request.node.name}
    async with httpx.AsyncClient(base_url=address, headers=who, timeout=20) as client:
        yield client


def quota(
    name: str,
    permits: float,
    per: float,
    remaining: int,
    reset: float,
    *,
    retry: float | None = None,
) -> Quota:
    refused = None if retry is None else timedelta(seconds=retry)
    decision = RateLimitDecision(retry is None, remaining, refused, timedelta(seconds=reset))
    return Quota(name, RateLimitStrategy(permits=permits, per=per), decision)


# -- the fields ----------------------------------------------------------------------


def test_the_fields_are_those_of_the_draft() -> None:
    """Forms of draft-ietf-httpapi-ratelimit-headers-11."""
    burst, daily = quota("burst", 100, 60, 50, 30), quota("daily", 1000, 86400, 999, 86.4)
    assert fields_of([burst]) == {
        "RateLimit-Policy": '"burst";q=100;w=60',
        "RateLimit": '"burst";r=50;t=30',
    }
    assert fields_of([burst, daily]) == {
        "RateLimit-Policy": '"burst";q=100;w=60, "daily";q=1000;w=86400',
        "RateLimit": '"burst";r=50;t=30, "daily";r=999;t=87',
    }
    assert fields_of([quota('a b"c', 10, 60, 3, 12)])["RateLimit"] == r'"a b\"c";r=3;t=12'


def test_a_refusal_says_when_to_come_back() -> None:
    refused = quota("api", 10, 60, 0, 60, retry=5.2)
    assert fields_of([quota("burst", 100, 60, 50, 30), refused]) == {
        "RateLimit-Policy": '"burst";q=100;w=60, "api";q=10;w=60',
        "RateLimit": '"burst";r=50;t=30, "api";r=0;t=6',
        "Retry-After": "6",
    }
    assert fields_of([quota("api", 10, 60, 0, 60, retry=0.01)])["Retry-After"] == "1"
    never = quota("api", 10, 60, 10, 0)
    never = never._replace(decision=RateLimitDecision(False, 10, None))
    assert "Retry-After" not in fields_of([never])


def test_the_older_fields_tell_of_the_limit_that_is_closest() -> None:
    told = fields_of([quota("a", 100, 60, 50, 30), quota("b", 10, 60, 3, 12)], legacy=True)
    assert (told["X-RateLimit-Limit"], told["X-RateLimit-Remaining"]) == ("10", "3")
    assert told["X-RateLimit-Reset"] == "12"
    told = fields_of([quota("a", 9, 60, 0, 30), quota("b", 10, 60, 3, 12, retry=7)], legacy=True)
    assert (told["X-RateLimit-Limit"], told["X-RateLimit-Reset"]) == ("10", "7")


@pytest.mark.parametrize(
    ("permits", "per", "said"),
    [
        (10, 60, (10, 60)), (10, timedelta(minutes=1), (10, 60)), (0.5, 1, (1, 2)),
        (5, 0.1, (50, 1)),
        (1 / 3, 1, (1, 3)), (1 / 31_536_000, 1, (1, 31_536_000)),
        (2.5, 1.5, (5, 3)), (1, timedelta(days=365), (1, 31536000)),
        (10**18, 1, (999_999_999_999_999, 1)),
    ],
)  # fmt: skip
def test_a_rate_is_said_in_whole_numbers(permits: float, per: Any, said: tuple[int, int]) -> None:
    strategy = RateLimitStrategy(permits=permits, per=per)
    assert quota_of(strategy) == said
    http_sf.parse(f'"x";q={said[0]};w={said[1]}'.encode(), tltype="list")


# -- whose bucket ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("client", "key"),
    [
        (("203.0.113.7", 1), "address:203.0.113.7"),
        (("2001:db8:1:2:3:4:5:6", 1), "address:2001:db8:1:2::/64"),
        (("::ffff:203.0.113.7", 1), "address:203.0.113.7"),
        (("fe80::1%eth0", 1), "address:fe80::/64"),
        (("a-name", 1), "address:a-name"),
        (None, "address:"),
    ],
)
def test_a_caller_nobody_knows_is_its_address(client: Any, key: str) -> None:
    assert caller(HTTPConnection({"type": "http", "client": client, "headers": []})) == key


def test_a_caller_is_its_principal_of_its_tenant() -> None:
    connection = HTTPConnection({"type": "http", "client": ("::1", 1), "headers": []})
    with bind_tenant("a/b"):
        assert caller(connection) == "tenant:a%2Fb"
        with bind_principal("ann"):
            assert caller(connection) == "tenant:a%2Fb/principal:ann"
    with bind_principal("ann"):
        assert caller(connection) == "principal:ann"


@in_one_loop
async def test_each_caller_has_a_bucket_of_its_own(one: httpx.AsyncClient) -> None:
    for who in ({"X-User": "ann"}, {"X-User": "bob"}, {"X-User": "ann", "X-Tenant": "t"}):
        answers = [await one.get("/own", headers=who) for _ in range(4)]
        assert [each.status_code for each in answers] == [200, 200, 200, 429]
    answers = [await one.get("/shared", headers={"X-User": who}) for who in "ab"]
    assert [each.status_code for each in answers] == [200, 429]


# -- over HTTP -------------------------------------------------------------------------


@in_one_loop
async def test_success_and_refusal_say_where_the_caller_stands(one: httpx.AsyncClient) -> None:
    first = await one.get("/plain")
    assert first.json() == {"ok": True}
    assert first.headers["ratelimit-policy"] == '"api";q=10;w=3600'
    assert first.headers["ratelimit"] == '"api";r=9;t=360'
    assert "retry-after" not in first.headers
    for _ in range(9):
        assert (await one.get("/plain")).status_code == 200
    refused = await one.get("/plain")
    assert refused.status_code == 429
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.json()["type"] == PROBLEMS + "quota-exceeded"
    assert refused.json()["violated-policies"] == ["api"]
    assert refused.headers["ratelimit-policy"] == '"api";q=10;w=3600'
    wait = int(refused.headers["retry-after"])
    assert 300 < wait <= 360
    assert refused.headers["ratelimit"] == f'"api";r=0;t={wait}'


@in_one_loop
async def test_the_fields_are_on_every_answer(one: httpx.AsyncClient) -> None:
    """Of the handler's own making, streamed, raised, crashed, refused by FastAPI."""
    asked = {"/own": 200, "/stream": 200, "/raised": 418, "/crash": 500, "/invalid": 422}
    for path, status in asked.items():
        answer = await one.get(path, headers={"X-User": path})
        assert answer.status_code == status
        assert answer.headers.get_list("ratelimit-policy") == ['"small";q=3;w=3600']
        assert answer.headers.get_list("ratelimit") == ['"small";r=2;t=1200']
    assert "ratelimit" not in (await one.get("/openapi.json")).headers


@in_one_loop
async def test_of_several_limits_all_or_none_are_taken(one: httpx.AsyncClient) -> None:
    first = await one.get("/both")
    assert first.headers["ratelimit-policy"] == '"api";q=10;w=3600, "single";q=1;w=3600'
    assert first.headers["ratelimit"] == '"api";r=9;t=360, "single";r=0;t=3600'
    assert first.headers["x-ratelimit-limit"] == "1"
    for _ in range(10):
        refused = await one.get("/both")
        assert refused.status_code == 429
        assert refused.headers["ratelimit-policy"] == first.headers["ratelimit-policy"]
        assert refused.headers["ratelimit"].startswith('"api";r=9;')
        assert '"single";r=0;' in refused.headers["ratelimit"]
        assert refused.json()["violated-policies"] == ["single"]
    assert (await one.get("/plain")).headers["ratelimit"].startswith('"api";r=8;')


@in_one_loop
async def test_a_request_may_cost_more_or_nothing_and_never_too_much(
    one: httpx.AsyncClient,
) -> None:
    assert (await one.get("/costly/0")).json() == 10
    assert (await one.get("/costly/7")).json() == 3
    refused = await one.get("/costly/4")
    assert (refused.status_code, refused.headers["ratelimit"][:9]) == (429, '"api";r=3')
    never = await one.get("/costly/11")
    assert (never.status_code, "retry-after" in never.headers) == (429, False)
    assert (await one.get("/costly/-5")).status_code == 500  # nor does it give any back
    assert (await one.get("/costly/3")).json() == 0


async def test_a_limit_given_on_the_spot_needs_no_runtime() -> None:
    """Nor its lifespan: an answer of FastAPI's own making has the fields all the same."""
    app = FastAPI()
    two = RateLimitStrategy(permits=2, per=60)
    limit = Depends(RateLimit("spot", strategy=two, key=lambda _: "all"))

    @app.get("/")
    async def root(decision: RateLimitDecision = limit) -> int:
        return decision.remaining

    async with client_of(app) as one:
        answers = [await one.get("/") for _ in range(3)]
    assert [each.status_code for each in answers] == [200, 200, 429]
    assert answers[1].headers["ratelimit"] == '"spot";r=0;t=60'
    assert answers[2].headers["ratelimit-policy"] == '"spot";q=2;w=60'
    assert int(answers[2].headers["retry-after"]) <= 30


# -- without the server --------------------------------------------------------------


async def test_without_its_server_a_limit_stands_in_or_refuses(own_valkey: ValkeyServer) -> None:
    async with client_of(on_server(own_valkey.dsn)) as one:
        assert (await one.get("/own")).status_code == 200
        own_valkey.kill()
        answers = [await one.get("/plain") for _ in range(12)]
        assert {each.status_code for each in answers} == {200, 429}
        closed = await one.get("/closed")
        assert closed.status_code == 503
        assert closed.json()["type"] == PROBLEMS + "temporary-reduced-capacity"
        assert int(closed.headers["retry-after"]) >= 1


# -- wiring ------------------------------------------------------------------------------


def test_openapi_says_it_all() -> None:
    app = limited()[0]
    assert app.openapi() == app.openapi()
    for path, status in product(("/plain", "/both", "/costly/{units}"), ("429", "503")):
        refusal = app.openapi()["paths"][path]["get"]["responses"][status]
        assert refusal["headers"].keys() == {"Retry-After", "RateLimit-Policy", "RateLimit"}
        told = refusal["content"]["application/problem+json"]
        assert told["schema"] == {"$ref": "#/components/schemas/Problem"}
        assert told["example"]["status"] == int(status)
    assert "Problem" in app.openapi()["components"]["schemas"]
    open_to_failures = RateLimit("spot", strategy=RateLimitStrategy(permits=1))
    assert open_to_failures.responses.keys() == {429}


def test_nonsense_is_refused_when_it_is_made() -> None:
    strategy = RateLimitStrategy(permits=1)
    wrong: list[dict[str, Any]] = [
        {"policy": ""}, {"policy": "ü"}, {"policy": 7}, {"strategy": None}, {"cost": -1},
        {"cost": 1.5}, {"strategy": 10}, {"ctx_dep": lambda: None},
        {"strategy": None, "ctx_dep": lambda: None, "store": object()},
    ]  # fmt: skip
    for each in wrong:
        with pytest.raises(ConfigurationError):
            RateLimit(**{"policy": "api", "strategy": strategy, **each})


async def test_an_unknown_policy_is_a_fault_of_the_program() -> None:
    _app, runtime = limited()
    limit = RateLimit("unknown", ctx_dep=runtime.get_context)
    connection = HTTPConnection({"type": "http", "client": None, "headers": []})
    async with runtime.scope() as ctx:
        with pytest.raises(ConfigurationError, match="unknown"):
            await limit(connection, None, ctx)  # type: ignore[arg-type] # never gets so far
