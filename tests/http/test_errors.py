"""Every error of the tree leaves an application as a problem that tells nothing of its inside."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Annotated, Any, Literal

import asyncpg
import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI, Header, HTTPException, Query, Request, Response, WebSocket
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field, Json
from tests.architecture.tree import ROOT

from forze import errors
from forze.errors import ForzeError
from forze.testing.serving import client_of
from forze_fastapi import HTTPProblem, problem_responses, register_exception_handlers
from forze_fastapi.errors.mapping import KINDS, kind_of, problem_of, retry_after
from forze_postgres.errors import mapped

in_one_loop = pytest.mark.asyncio(loop_scope="module")
"""For the tests that share a server."""

INSIDE = "redis://app:hunter2@10.0.0.7 SELECT secret FROM shop.products"
TWO_SECONDS = timedelta(seconds=1.2)


def _tree(cls: type[ForzeError] = ForzeError) -> Iterator[type[ForzeError]]:
    if cls.__module__ == "forze.errors":
        yield cls
        for each in cls.__subclasses__():
            yield from _tree(each)


def _of(cls: type[ForzeError], **attributes: Any) -> ForzeError:
    error = cls.__new__(cls)
    error.__dict__.update(message=INSIDE, outcome="none", **attributes)
    return error


@pytest.mark.parametrize("cls", sorted(set(_tree()), key=str))
def test_every_class_of_the_tree_is_mapped(cls: type[ForzeError]) -> None:
    assert cls in KINDS, f"{cls.__name__} has no problem of its own"
    problem = problem_of(_of(cls))
    kind = kind_of(cls)
    assert problem.type == f"urn:forze:problem:{kind.kind}"
    assert 400 <= problem.status == kind.status <= 504
    assert problem.title
    assert problem.detail
    if not kind.shows_message:
        assert "hunter2" not in problem.model_dump_json()


def test_kinds_differ_and_what_the_caller_caused_is_not_a_fault_of_ours() -> None:
    assert len({each.kind for each in KINDS.values()}) == len(KINDS)
    shown = {cls for cls, kind in KINDS.items() if kind.shows_message}
    assert shown == {
        errors.ValidationError, errors.NotFoundError, errors.ConflictError, errors.RevisionMismatch
    }  # fmt: skip
    assert all(KINDS[each].status < 500 for each in shown)


def test_the_documentation_lists_each_kind() -> None:
    page = (ROOT / "docs" / "http-errors.md").read_text()
    rows = re.findall(r"^\| `(\w+)`[^|]*\| (\d{3}) \| `([\w-]+)` \|([^|]*)\|([^|]*)\|$", page, re.M)
    said = {
        name: (int(status), kind, "the error's message" in detail)
        for name, status, kind, _, detail in rows
    }
    assert said == {
        cls.__name__: (kind.status, kind.kind, kind.shows_message) for cls, kind in KINDS.items()
    }
    for name, *_, members, _ in rows:
        named = set(re.findall(r"`(\w+)`", members)) - {"retry_after", "outcome"}
        assert named == set(KINDS[getattr(errors, name)].members)


def test_a_class_of_an_application_is_what_its_parent_is() -> None:
    class OutOfStock(errors.ConflictError):
        """The last one is sold."""

    assert problem_of(OutOfStock("the last one is sold")).status == 409


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (errors.Throttled("no", retry_after=timedelta(milliseconds=1)), 1),
        (errors.Throttled("no", retry_after=TWO_SECONDS), 2),
        (errors.Throttled("no", retry_after=timedelta(days=1)), 86_400),
        (errors.BackendUnavailable("away", backend="redis"), 1),
        (errors.BackendUnavailable("away", backend="redis", outcome="unknown"), None),
        (errors.BackendUnavailable("away", backend="redis", committed=True), None),
        (errors.BackendTimeout("late", backend="redis"), None),
        (errors.CircuitOpen(policy="p", retry_after=TWO_SECONDS), 2),
        (errors.BulkheadFull(policy="p", max_concurrent=1), 1),
        (errors.LockNotAcquired("no", resource="r", key="k"), None),
        (ValueError(), None),
    ],
)
def test_only_what_may_be_repeated_says_when(error: Exception, seconds: int | None) -> None:
    assert retry_after(error) == seconds


def test_words_of_a_driver_are_not_shown() -> None:
    driver = asyncpg.UniqueViolationError("duplicate key value violates products_sku_key")
    error = mapped(driver, doing="creating shop.products")
    error.__cause__ = driver
    for each in (error, error.again()):
        told = problem_of(each)
        assert told.status == 409
        assert "products" not in told.model_dump_json()
    own = errors.ConflictError("notes 7 exists already", resource="notes")
    for cause in (KeyError(7), own):  # its own cause, after ``raise error from error``
        own.__cause__ = cause
        assert problem_of(own).detail == "notes 7 exists already"


class Problem(BaseModel):
    """Something to solve."""

    difficulty: int


class Size(BaseModel):
    width: int
    kind: Literal["a", "b"] = "a"


class Order(BaseModel):
    card: int
    note: Json[Any] = None
    sizes: list[Size] = Field(default_factory=list)


def _app(**options: Any) -> FastAPI:
    app = FastAPI()
    register_exception_handlers(app, **options)
    return app


class Sold(Exception):
    """An application's own, with a handler of its own."""


FAILURES: dict[str, BaseException] = {
    "stale": errors.RevisionMismatch(resource="notes", id=7, expected=3, current=4),
    "absent": errors.NotFoundError("notes 7: no such document", resource="notes", ids=(7,)),
    "gone": errors.SnapshotGone(resource="notes", run_id="r"),
    "wrong": errors.ValidationError("limit must be at most 100", field="limit"),
    "busy": errors.IdempotencyInProgress(operation="o", key="k", retry_after=TWO_SECONDS),
    "other": errors.IdempotencyMismatch(operation="o", key="k"),
    "tenant": errors.TenantRequired("cache 'notes'"),
    "often": errors.Throttled(INSIDE, retry_after=TWO_SECONDS),
    "away": errors.BackendUnavailable(INSIDE, backend="redis"),
    "away\n": errors.BackendUnavailable(INSIDE, backend="redis"),
    "late": errors.BackendTimeout(INSIDE, backend="redis", outcome="unknown"),
    "wired": errors.ConfigurationError(INSIDE),
    "teapot": HTTPException(418, "short and stout", headers={"X-Tea": "yes"}),
    "data": HTTPException(400, {"because": ["this"]}),
    "own": HTTPProblem(402, "out-of-credit", "Buy more.", title="No credit", balance=3),
    "unchanged": HTTPException(304),
    "one": ExceptionGroup("of a task group", [ExceptionGroup("", [errors.LockLost("x",
                          resource="r", key="k")])]),
    "several": ExceptionGroup("", [errors.NotFoundError("x", resource="notes"),
                                   errors.BackendUnavailable(INSIDE, backend="redis")]),
    "sold": ExceptionGroup("", [Sold()]),
    "raised": RequestValidationError([{"loc": ("body", "a"), "msg": "no"}, "nor this"]),
    "bug": ValueError(INSIDE),
    "one-bug": ExceptionGroup("", [ValueError(INSIDE)]),
    "bugs": ExceptionGroup("", [ValueError(INSIDE), errors.NotFoundError("", resource="notes")]),
}  # fmt: skip


def _failing(app: FastAPI) -> FastAPI:
    @app.get("/{name}")
    async def fail(name: str) -> None:
        raise FAILURES[name]

    return app


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def failing() -> AsyncIterator[httpx.AsyncClient]:
    app = _app()
    register_exception_handlers(app)  # once more changes nothing
    app.mount("/left-to-others", _failing(_app(unexpected=False)))
    app.mount("/without", _failing(FastAPI()))

    @app.exception_handler(Sold)
    async def sold(request: Request, error: Sold) -> Response:
        return Response(status_code=451)

    @app.get("/group/{name}")
    async def both(name: str) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.Event().wait())
            group.create_task(_raise(FAILURES[name]))

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        async def parts() -> AsyncIterator[str]:
            yield "one"
            await _raise(FAILURES["away"])

        return StreamingResponse(parts())

    @app.post("/orders/{shop}")
    async def order(
        shop: int, body: Order, limit: Annotated[int, Query(le=9)] = 1, x_a: int = Header(1)
    ) -> None: ...

    @app.post("/numbers")
    async def numbers(body: list[int]) -> None: ...

    async with client_of(_failing(app), log_config=None) as client:
        yield client


async def _raise(error: BaseException) -> None:
    raise error


PROBLEMS: list[tuple[str, int, str, dict[str, object]]] = [
    ("stale", 409, "revision-mismatch", {"current": 4, "expected": 3, "id": "7"}),
    ("absent", 404, "not-found", {"resource": "notes", "detail": "notes 7: no such document"}),
    ("gone", 410, "snapshot-gone", {"resource": "notes"}),
    ("wrong", 422, "validation", {"field": "limit", "detail": "limit must be at most 100"}),
    ("busy", 409, "idempotency-in-progress", {"retry_after": 2}),
    ("other", 422, "idempotency-mismatch", {}),
    ("tenant", 400, "tenant-required", {}),
    ("often", 429, "throttled", {"retry_after": 2}),
    ("away", 503, "backend-unavailable", {"outcome": "none", "retry_after": 1}),
    ("late", 504, "backend-timeout", {"outcome": "unknown"}),
    ("own", 402, "out-of-credit", {"title": "No credit", "balance": 3, "detail": "Buy more."}),
    ("one", 503, "lock-lost", {}),
    ("several", 503, "backend-unavailable", {"outcome": "none"}),
]


@in_one_loop
async def test_problems_over_http(failing: httpx.AsyncClient) -> None:
    for name, status, kind, members in PROBLEMS:
        answer = await failing.get(f"/{name}")
        assert answer.status_code == status
        assert answer.headers["content-type"] == "application/problem+json"
        told = answer.json()
        assert told["type"] == f"urn:forze:problem:{kind}"
        assert told["status"] == status
        assert told.items() >= members.items()
        assert answer.headers.get("retry-after") == (
            str(told["retry_after"]) if "retry_after" in told else None
        )
        assert "hunter2" not in answer.text
        assert "instance" not in told


@in_one_loop
async def test_what_anybody_raises_as_http_exception(failing: httpx.AsyncClient) -> None:
    teapot, data = await failing.get("/teapot"), await failing.get("/data")
    assert (teapot.status_code, teapot.headers["x-tea"]) == (418, "yes")
    assert teapot.json() == {
        "type": "about:blank", "title": "I'm a Teapot", "status": 418, "detail": "short and stout"
    }  # fmt: skip
    assert data.json()["data"] == {"because": ["this"]}
    unchanged = await failing.get("/unchanged")
    assert (unchanged.status_code, unchanged.content) == (304, b"")
    nowhere = await failing.get("/a/b")
    assert nowhere.json() == {"type": "about:blank", "title": "Not Found", "status": 404}
    refused = await failing.post("/stale")
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET")


@pytest.mark.parametrize("name", ["wired", "bug", "one-bug", "bugs"])
@in_one_loop
async def test_a_fault_of_the_program_has_an_id_and_no_text(
    failing: httpx.AsyncClient, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        answer = await failing.get(f"/{name}")
    assert answer.status_code == 500
    assert "hunter2" not in answer.text
    instance = answer.json()["instance"]
    assert instance.startswith("urn:uuid:")
    ours = [each for each in caplog.records if each.name == "forze.http"]
    assert [instance in each.getMessage() for each in ours] == [True]
    # Exactly one traceback is logged, by us or by the server, and it can be found by the id.
    tracebacks = [caplog.handler.format(each) for each in caplog.records if each.exc_info]
    assert len(tracebacks) == 1
    assert instance in tracebacks[0]
    assert "hunter2" in tracebacks[0]


@in_one_loop
async def test_a_backend_that_failed_is_one_line_in_the_log(
    failing: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    await failing.get("/away")
    (line,) = [each for each in caplog.records if each.name == "forze.http"]
    assert (line.levelname, line.getMessage(), line.exc_info) == (
        "WARNING", f"GET /away: {INSIDE}", None
    )  # fmt: skip


@in_one_loop
async def test_the_log_has_the_path_whatever_the_host_is_called(
    failing: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    for host in ("[::1", "a/b?c"):
        answer = await failing.get("/away%0A", headers={"host": host})
        assert answer.status_code == 503
    said = [each.getMessage() for each in caplog.records if each.name == "forze.http"]
    assert said == [f"GET /away%0A: {INSIDE}"] * 2


@in_one_loop
async def test_what_fails_while_it_is_streamed_is_cut_off(failing: httpx.AsyncClient) -> None:
    received = b""
    with pytest.raises(httpx.RemoteProtocolError):
        async with failing.stream("GET", "/stream") as answer:
            async for each in answer.aiter_raw():
                received += each
    assert received == b"one"


@in_one_loop
async def test_invalid_requests_are_told_without_what_was_sent(failing: httpx.AsyncClient) -> None:
    answer = await failing.post(
        "/orders/hunter2?limit=10",
        json={
            "card": "hunter2",
            "note": "hunter2",
            "sizes": [{"width": 1}, {"width": "hunter2", "kind": "c"}],
        },
        headers={"x-a": "hunter2"},
    )
    broken = await failing.post(
        "/orders/1", content=b'{"card": hunter2', headers={"content-type": "application/json"}
    )
    assert answer.status_code == broken.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert "hunter2" not in answer.text + broken.text
    told = answer.json()
    assert told["type"] == "urn:forze:problem:validation"
    assert told["detail"] == "7 things are wrong with the request."
    where = {(each["location"], each.get("name") or each["pointer"]) for each in told["errors"]}
    assert where == {
        ("path", "shop"), ("query", "limit"), ("header", "x-a"),
        ("body", "#/card"), ("body", "#/note"), ("body", "#/sizes/1/width"),
        ("body", "#/sizes/1/kind"),
    }  # fmt: skip
    assert broken.json()["errors"] == [
        {"detail": "JSON decode error", "location": "body", "pointer": "#"}
    ]


@in_one_loop
async def test_what_a_handler_finds_invalid_is_told_alike(failing: httpx.AsyncClient) -> None:
    answer = await failing.get("/raised")
    assert (answer.status_code, answer.json()["errors"]) == (422, [
        {"detail": "no", "location": "body", "pointer": "#/a"},
        {"detail": "nor this", "location": "body", "pointer": "#"},
    ])  # fmt: skip


@in_one_loop
async def test_a_million_mistakes_are_answered_shortly(failing: httpx.AsyncClient) -> None:
    answer = await failing.post("/numbers", json=["a/b"] * 10_000)
    told = answer.json()
    assert told["detail"] == "10000 things are wrong with the request."
    assert [each["pointer"] for each in told["errors"]] == [f"#/{n}" for n in range(100)]


@in_one_loop
async def test_a_task_group_that_lost_one_thing_is_answered_as_that(
    failing: httpx.AsyncClient,
) -> None:
    assert (await failing.get("/group/sold")).status_code == 451
    assert (await failing.get("/group/stale")).json()["current"] == 4


@in_one_loop
async def test_unexpected_errors_can_be_left_to_others(failing: httpx.AsyncClient) -> None:
    answer = await failing.get("/left-to-others/bug")
    assert (answer.status_code, answer.text) == (500, "Internal Server Error")
    assert (await failing.get("/left-to-others/stale")).status_code == 409


@in_one_loop
async def test_an_application_that_is_mounted_has_handlers_of_its_own(
    failing: httpx.AsyncClient,
) -> None:
    for name in ("stale", "away", "bug"):
        answer = await failing.get(f"/without/{name}")
        assert (answer.status_code, answer.text) == (500, "Internal Server Error")


def test_the_document_tells_of_problems_only() -> None:
    app = _app()

    @app.get("/a/{n}", responses=problem_responses(errors.NotFoundError, 401, errors.Throttled))
    async def one(n: int) -> int:
        return n

    @app.get("/b")
    async def two() -> int:
        return 1

    document = app.openapi()
    assert app.openapi() == document
    answers = document["paths"]["/a/{n}"]["get"]["responses"]
    problem = {"$ref": "#/components/schemas/Problem"}
    kinds = {"404": "not-found", "401": None, "422": "validation", "429": "throttled"}
    for status, kind in kinds.items():
        (told,) = answers[status]["content"].items()
        assert (told[0], told[1]["schema"]) == ("application/problem+json", problem)
        shown = told[1]["example"]
        assert shown["status"] == int(status)
        assert shown.get("type") == (kind and f"urn:forze:problem:{kind}")
    assert answers["422"]["content"]["application/problem+json"]["example"]["errors"]
    assert "urn:forze:problem:not-found" in answers["404"]["description"]
    assert set(answers["429"]["headers"]) == {"Retry-After"}
    assert set(document["components"]["schemas"]) == {"Problem", "InvalidInput"}
    assert list(document["paths"]["/b"]["get"]["responses"]) == ["200"]


def test_the_document_of_an_application_with_schemas_of_that_name() -> None:
    app = _app()

    @app.get("/{n}")
    async def one(n: int) -> Problem:
        return Problem(difficulty=n)

    document = app.openapi()
    answers = document["paths"]["/{n}"]["get"]["responses"]
    ours = answers["422"]["content"]["application/problem+json"]["schema"]["$ref"]
    theirs = answers["200"]["content"]["application/json"]["schema"]["$ref"]
    schemas = document["components"]["schemas"]
    assert set(schemas[ours.rpartition("/")[2]]["properties"]) >= {"type", "title", "status"}
    assert set(schemas[theirs.rpartition("/")[2]]["properties"]) == {"difficulty"}


def test_an_application_without_problems_has_no_schema_of_them() -> None:
    app = _app()

    @app.get("/")
    async def two() -> int:
        return 1

    assert "components" not in app.openapi()


async def _shake_hands(app: FastAPI, query: str, *extensions: str) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "websocket",
        "path": "/",
        "query_string": query.encode(),
        "headers": [],
        "subprotocols": [],
        "extensions": {key: {} for key in extensions},
    }
    await app(scope, receive, send)
    return sent


async def test_a_web_socket_is_refused_with_a_problem_or_closed() -> None:
    app = _app()

    @app.websocket("/")
    async def talk(socket: WebSocket, n: int = 0) -> None:
        raise FAILURES["tenant"]

    for query, status, says in (("", 400, b"tenant-required"), ("n=x", 422, b"a valid integer")):
        start, body = await _shake_hands(app, query, "websocket.http.response")
        assert (start["type"], start["status"]) == ("websocket.http.response.start", status)
        assert says in body["body"]
        (closed,) = await _shake_hands(app, query)
        assert (closed["type"], closed["code"]) == ("websocket.close", 1008)


async def test_a_web_socket_that_the_program_fails_is_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = _app()

    @app.websocket("/")
    async def talk(socket: WebSocket) -> None:
        await socket.accept()
        raise FAILURES["wired"]

    _, closed = await _shake_hands(app, "")
    assert (closed["type"], closed["code"], closed["reason"]) == ("websocket.close", 1011, "")
    (said,) = [each for each in caplog.records if each.name == "forze.http"]
    assert said.getMessage().startswith("WEBSOCKET /: problem urn:uuid:")
    assert said.exc_info
