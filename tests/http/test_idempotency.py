"""Idempotent routes over real sockets: run once, answered again, refused as documented."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import asyncpg
import httpx
import pytest
import pytest_asyncio
from fastapi import Depends, FastAPI, HTTPException
from tests.http.payments import SPEC, WAITING, World, in_memory, on_server

from forze.application.contracts.idempotency import IdempotencySpec
from forze.application.execution import DepsPlan, ExecutionRuntime, LifecyclePlan
from forze.errors import ConfigurationError
from forze.testing.proxy import RespProxy, script
from forze.testing.servers import ValkeyServer
from forze.testing.serving import client_of, serving
from forze_fastapi import IdempotencyFeature, register_exception_handlers, runtime_lifespan
from forze_fastapi.idempotency.header import Malformed, key_of
from forze_memory import MemoryDepsModule
from forze_postgres import (
    PostgresClient,
    PostgresDepsModule,
    PostgresIdempotencyConfig,
    idempotency_table_sql,
    postgres_lifecycle_step,
)
from forze_redis import idempotency as scripts

KEY = {"Idempotency-Key": '"8e03978e-40d5-43e8-bc93-6894a57f9324"'}
PROBLEM = "application/problem+json"


in_one_loop = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served() -> AsyncIterator[tuple[World, str]]:
    world = in_memory()
    async with serving(world.app) as address:
        yield world, address


@pytest.fixture
def world(served: tuple[World, str]) -> World:
    """What they all share, which knows nothing of the others."""
    served[0].forget()
    return served[0]


@pytest_asyncio.fixture(loop_scope="module")
async def one(
    world: World, served: tuple[World, str], request: pytest.FixtureRequest
) -> AsyncIterator[httpx.AsyncClient]:
    """A principal of its own, so that its keys are nobody else's."""
    who = {"X-User": request.node.name}
    async with httpx.AsyncClient(base_url=served[1], headers=who, timeout=20) as client:
        yield client
    world.go.set()


@asynccontextmanager
async def client(world: World) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(world.app) as one:
        yield one
        world.go.set()


def replayed(response: httpx.Response) -> bool:
    return bool(response.headers.get("Idempotency-Replayed") == "true")


async def in_parts(body: bytes) -> AsyncIterator[bytes]:
    """A body whose length nobody announces."""
    yield body


def is_problem(response: httpx.Response, status: int, kind: str) -> bool:
    told = response.json()
    seen = (response.status_code, response.headers["content-type"], told["status"], told["type"])
    return seen == (status, PROBLEM, status, f"urn:forze:problem:{kind}")


# -- the header ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "key"),
    [
        ('"8e03978e-40d5-43e8-bc93-6894a57f9324"', "8e03978e-40d5-43e8-bc93-6894a57f9324"),
        ("8e03978e-40d5-43e8-bc93-6894a57f9324", "8e03978e-40d5-43e8-bc93-6894a57f9324"),
        ('"KG5LxwFBepaKHyUD"', "KG5LxwFBepaKHyUD"),
        ("KG5LxwFBepaKHyUD", "KG5LxwFBepaKHyUD"),
        ("  abc\t", "abc"),
        ('"with space, and ; more"', "with space, and ; more"),
        (r'"a\"b\\c"', r"a\"b\c".replace(r"\"", '"')),
        ('"abc";v=1', "abc"),
        ("order:7/line.3~x", "order:7/line.3~x"),
        ('"' + "x" * 255 + '"', "x" * 255),
        ("x" * 255, "x" * 255),
    ],
)
def test_keys(field: str, key: str) -> None:
    assert key_of([field]) == key


@pytest.mark.parametrize(
    "field",
    [
        "", "   ", '""', '"open', 'closed"', "two words", '"a" "b"', '"a", "b"', "a,b", "a;b=1",
        "?1", ":YQ==:", "(a b)", '%"a"', '"\x7f"', '"ü"', "ü", "'single'x y", '"' + "x" * 256 + '"',
        "x" * 300, '"' + "x" * 300 + '"',
    ],
)  # fmt: skip
def test_what_is_no_key(field: str) -> None:
    with pytest.raises(Malformed):
        key_of([field])


def test_no_field_and_two() -> None:
    with pytest.raises(Malformed, match="missing"):
        key_of([])
    with pytest.raises(Malformed, match="2 times"):
        key_of(["a", "a"])


# -- run once, answered again --------------------------------------------------------


@in_one_loop
async def test_the_first_runs_and_the_others_are_given_its_answer(
    world: World, one: httpx.AsyncClient
) -> None:
    first = await one.post("/v1/payments", json={"amount": 5}, headers=KEY)
    assert (first.status_code, first.json()) == (201, {"paymentNumber": 1, "amount": 5})
    assert first.headers["location"] == "/v1/payments/1"
    assert "set-cookie" in first.headers
    assert not replayed(first)
    for _ in range(2):
        again = await one.post("/v1/payments", json={"amount": 5}, headers=KEY)
        assert replayed(again)
        assert (again.status_code, again.content) == (201, first.content)
        assert again.headers["content-type"] == first.headers["content-type"]
        assert again.headers["location"] == "/v1/payments/1"
        assert {"set-cookie", "x-trace"}.isdisjoint(again.headers)
    async with asyncio.timeout(20):
        while not world.background:  # it runs once the answer is sent
            await asyncio.sleep(0.01)
    assert (world.runs, world.background) == (1, [1])


@in_one_loop
async def test_quoted_and_bare_are_one_key_and_json_counts_by_its_value(
    world: World, one: httpx.AsyncClient
) -> None:
    bodies = (
        b'{"amount": 5, "x": [1, {"a": 1, "b": 2}]}',
        b'{"x":[1,{"b":2,"a":1}],"amount":5}',
    )
    for key, body in zip(('"k-1"', "k-1"), bodies, strict=True):
        headers = {"Idempotency-Key": key, "Content-Type": "application/json"}
        last = await one.post("/v1/payments?b=1&a=2", content=body, headers=headers)
    assert replayed(last)
    same = await one.post("/v1/payments?a=2&b=1", content=bodies[0], headers=headers)
    assert replayed(same)
    assert world.runs == 1


@in_one_loop
async def test_another_payload_is_refused(world: World, one: httpx.AsyncClient) -> None:
    await one.post("/v1/payments", json={"amount": 5}, headers=KEY)
    for path, amount in (("/v1/payments", 6), ("/v1/payments?x=1", 5)):
        other = await one.post(path, json={"amount": amount}, headers=KEY)
        assert is_problem(other, 422, "idempotency-mismatch")
    again = await one.post("/v1/payments", json={"amount": 5}, headers=KEY)
    assert replayed(again)
    assert world.runs == 1


@in_one_loop
async def test_without_a_key_it_runs_each_time(world: World, one: httpx.AsyncClient) -> None:
    for run in (1, 2):
        answer = await one.post("/v1/payments", json={"amount": 5})
        assert answer.json()["paymentNumber"] == run
        assert "idempotency-replayed" not in answer.headers


@in_one_loop
async def test_a_key_belongs_to_its_route_and_its_principal(
    world: World, one: httpx.AsyncClient
) -> None:
    for user in ("ann", "bob", None):
        headers = KEY if user is None else {**KEY, "X-User": user}
        assert not replayed(await one.post("/v1/sync", json={"amount": 5}, headers=headers))
        assert replayed(await one.post("/v1/sync", json={"amount": 5}, headers=headers))
    assert not replayed(await one.post("/v1/payments", json={"amount": 5}, headers=KEY))
    assert world.runs == 4


@in_one_loop
async def test_a_key_belongs_to_one_of_several_mounted_applications(
    world: World, one: httpx.AsyncClient
) -> None:
    for path in ("/a/v1/held", "/b/v1/held", "/v1/held"):
        world.go.set()
        assert not replayed(await one.post(path, headers=KEY))
        assert replayed(await one.post(path, headers=KEY))
    assert world.runs == 3


@in_one_loop
async def test_a_handler_that_is_not_async(world: World, one: httpx.AsyncClient) -> None:
    first = await one.post("/v1/sync", json={"amount": 5}, headers=KEY)
    again = await one.post("/v1/sync", json={"amount": 5}, headers=KEY)
    assert (first.status_code, first.content) == (202, b'{"run":1}')
    assert (again.status_code, again.content, replayed(again)) == (202, b'{"run":1}', True)


@in_one_loop
async def test_responses_of_the_handlers_own(world: World, one: httpx.AsyncClient) -> None:
    for run, how in enumerate(("bytes", "empty", "redirect"), 1):
        headers = {"Idempotency-Key": how}
        first = await one.post(f"/v1/own?how={how}", headers=headers)
        again = await one.post(f"/v1/own?how={how}", headers=headers)
        assert (replayed(again), world.runs) == (True, run)
        assert (again.status_code, again.content) == (first.status_code, first.content)
        for name in ("content-type", "content-length", "etag", "location"):
            assert again.headers.get(name) == first.headers.get(name)
        assert {"set-cookie", "authorization"}.isdisjoint(again.headers)


# -- refused -----------------------------------------------------------------------


@in_one_loop
async def test_malformed_keys_are_refused_and_nothing_runs(
    world: World, one: httpx.AsyncClient
) -> None:
    for field in ("x" * 300, '"open', "two words"):
        answer = await one.post(
            "/v1/payments", json={"amount": 5}, headers={"Idempotency-Key": field}
        )
        assert is_problem(answer, 400, "idempotency-key")
    twice = [("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
    answer = await one.post("/v1/payments", json={"amount": 5}, headers=twice)
    assert is_problem(answer, 400, "idempotency-key")
    assert world.runs == 0


async def test_a_key_can_be_required() -> None:
    world = in_memory(required=True)
    async with client(world) as one:
        for body in ({"amount": 5}, {"amount": "no number"}):
            answer = await one.post("/v1/payments", json=body)
            assert is_problem(answer, 400, "idempotency-key")
        assert (await one.post("/v1/payments", json={"amount": 5}, headers=KEY)).status_code == 201
    assert world.runs == 1


@in_one_loop
async def test_a_duplicate_in_flight_is_refused_with_a_time_to_come_back(
    world: World, one: httpx.AsyncClient
) -> None:
    running = asyncio.create_task(one.post("/v1/held", headers=KEY))
    await world.entered.wait()
    duplicate = await one.post("/v1/held", headers=KEY)
    assert is_problem(duplicate, 409, "idempotency-in-progress")
    assert duplicate.headers["retry-after"] == "1"
    world.go.set()
    first = await running
    again = await one.post("/v1/held", headers=KEY)
    assert (first.content, again.content, replayed(again)) == (b'{"run":1}', b'{"run":1}', True)
    assert world.claims[0].generation == 1


async def test_a_duplicate_may_wait_for_the_answer() -> None:
    world = in_memory(WAITING)
    async with client(world) as one:
        running = asyncio.create_task(one.post("/v1/held", headers=KEY))
        await world.entered.wait()
        duplicates = [asyncio.create_task(one.post("/v1/held", headers=KEY)) for _ in range(5)]
        asyncio.get_running_loop().call_later(0.05, world.go.set)
        answers = [await each for each in (running, *duplicates)]
        assert {each.content for each in answers} == {b'{"run":1}'}
        assert [replayed(each) for each in answers] == [False] + [True] * 5


async def test_a_body_above_the_limit_is_refused() -> None:
    world = in_memory(max_request_bytes=100)
    async with client(world) as one:
        body = {"amount": 5, "rest": "x" * 100}
        announced = await one.post("/v1/payments", json=body, headers=KEY)
        assert is_problem(announced, 413, "body-too-large")
        assert announced.json()["max_bytes"] == 100

        headers = {**KEY, "Content-Type": "application/json"}
        chunked = await one.post(
            "/v1/payments", content=in_parts(json.dumps(body).encode()), headers=headers
        )
        assert is_problem(chunked, 413, "body-too-large")
        form = httpx.Request("POST", "http://x", data={"title": "t"}, files={"file": b"x" * 100})
        headers = {**KEY, "Content-Type": form.headers["content-type"]}
        chunked = await one.post("/v1/form", content=in_parts(form.read()), headers=headers)
        assert is_problem(chunked, 413, "body-too-large")
        assert (await one.post("/v1/payments", json={"amount": 5}, headers=KEY)).status_code == 201
    assert world.runs == 1


# -- what is kept --------------------------------------------------------------------


@in_one_loop
async def test_which_answers_are_kept(world: World, one: httpx.AsyncClient) -> None:
    """2xx, 3xx and what the spec names (402); exceptions only where it names their status."""
    kept = [(200, "set"), (302, "set"), (402, "set"), (402, "raise")]
    freed = [(400, "set"), (409, "raise"), (503, "set"), (404, "missing"), (500, "crash"),
             (303, "raise")]  # fmt: skip
    for code, how in (*kept, *freed):
        headers, before = {"Idempotency-Key": f"{code}-{how}"}, world.runs
        first = await one.post(f"/v1/status/{code}?how={how}", headers=headers)
        again = await one.post(f"/v1/status/{code}?how={how}", headers=headers)
        assert first.status_code == again.status_code == code
        assert replayed(again) is ((code, how) in kept)
        assert world.runs - before == (1 if replayed(again) else 2)
        if replayed(again):
            assert again.content == first.content
            assert again.headers.get("etag") == first.headers.get("etag")


@in_one_loop
async def test_the_answer_to_an_exception_is_the_one_that_was_sent(
    world: World, one: httpx.AsyncClient
) -> None:
    first = await one.post("/v1/status/402?how=declined", headers=KEY)
    again = await one.post("/v1/status/402?how=declined", headers=KEY)
    assert (first.status_code, first.json()) == (402, {"declined": 1})
    assert (replayed(again), again.content) == (True, first.content)
    assert (world.runs, world.declined) == (1, 1)
    # Not what it would have been, if a dependency makes another of it.
    for run in (2, 3):
        answer = await one.post("/v1/converted", headers=KEY)
        assert (answer.status_code, replayed(answer), world.runs) == (404, False, run)


@in_one_loop
async def test_a_change_that_stands_is_not_made_again_though_its_request_failed(
    world: World, one: httpx.AsyncClient
) -> None:
    first = await one.post("/v1/status/503?how=committed", headers=KEY)
    again = await one.post("/v1/status/503?how=committed", headers=KEY)
    assert is_problem(first, 503, "backend-unavailable")
    assert first.json()["outcome"] == "committed"
    assert (replayed(again), again.content, world.runs) == (True, first.content, 1)


@in_one_loop
async def test_what_a_route_class_makes_of_an_answer_is_kept(
    world: World, one: httpx.AsyncClient
) -> None:
    first = await one.post("/v1/dated", headers=KEY)
    again = await one.post("/v1/dated", headers=KEY)
    assert (first.status_code, first.headers["last-modified"]) == (203, "1")
    assert (again.status_code, again.headers["last-modified"]) == (203, "1")
    assert (replayed(again), world.runs) == (True, 1)


@in_one_loop
async def test_what_fastapi_refuses_frees_the_key(world: World, one: httpx.AsyncClient) -> None:
    answer = await one.post("/v1/payments", json={"amount": "no number"}, headers=KEY)
    assert answer.status_code == 422
    answer = await one.post("/v1/payments", json={"amount": 5}, headers=KEY)
    assert (answer.status_code, replayed(answer)) == (201, False)


@in_one_loop
async def test_a_dependency_that_fails_on_the_way_out_frees_the_key(
    world: World, one: httpx.AsyncClient
) -> None:
    world.go.set()
    assert (await one.post("/v1/committed", headers=KEY)).status_code == 404
    world.go.clear()
    answer = await one.post("/v1/committed", headers=KEY)
    assert (answer.status_code, answer.content, replayed(answer)) == (200, b'{"run":2}', False)
    assert replayed(await one.post("/v1/committed", headers=KEY))


async def test_an_answer_above_the_limit_is_given_once(caplog: pytest.LogCaptureFixture) -> None:
    world = in_memory(max_body_bytes=1000)
    async with client(world) as one:
        for _ in range(2):
            answer = await one.post("/v1/own?how=large", headers=KEY)
            assert (len(answer.content), replayed(answer)) == (2000, False)
    assert world.runs == 2
    assert "2000 bytes, more than max_body_bytes (1000)" in caplog.text


@in_one_loop
async def test_forms_count_by_their_fields_and_files(world: World, one: httpx.AsyncClient) -> None:
    files = {"file": ("a.txt", b"text of a file", "text/plain")}
    first = await one.post("/v1/form", data={"title": "t"}, files=files, headers=KEY)
    assert first.json() == {"title": "t", "text": "text of a file", "run": 1}
    again = await one.post("/v1/form", data={"title": "t"}, files=files, headers=KEY)
    assert replayed(again)  # under another boundary
    files = {"file": ("a.txt", b"text of another", "text/plain")}
    other = await one.post("/v1/form", data={"title": "t"}, files=files, headers=KEY)
    assert is_problem(other, 422, "idempotency-mismatch")


# -- streams -------------------------------------------------------------------------


@in_one_loop
async def test_an_answer_that_streams_is_not_held_back_and_not_kept(
    world: World, one: httpx.AsyncClient
) -> None:
    async with one.stream("POST", "/v1/stream", headers=KEY) as answer:
        parts = answer.aiter_raw()
        assert await anext(parts) == b"first,"
        duplicate = await one.post("/v1/stream", headers=KEY)
        assert duplicate.status_code == 409
        world.go.set()
        assert b"".join([part async for part in parts]) == b"last"
    assert (await one.post("/v1/stream", headers=KEY)).content == b"first,last"
    assert world.runs == 2


@in_one_loop
async def test_a_body_that_streams_is_not_gathered(world: World, one: httpx.AsyncClient) -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield b"first"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2):
                await world.entered.wait()  # the handler has it before the rest is sent
        yield b"last"

    answer = await one.post("/v1/upload", content=parts(), headers=KEY)
    assert answer.json() == {"bytes": 9}
    assert world.chunks == [b"first", b"last"]
    again = await one.post("/v1/upload", content=b"", headers=KEY)
    assert replayed(again)


@in_one_loop
async def test_a_handler_that_reads_the_body_itself_can_and_it_is_compared(
    world: World, one: httpx.AsyncClient
) -> None:
    first = await one.post("/v1/raw", json={"a": 1}, headers=KEY)
    assert first.json() == {"a": 1}
    assert replayed(await one.post("/v1/raw", json={"a": 1}, headers=KEY))
    assert (await one.post("/v1/raw", json={"a": 2}, headers=KEY)).status_code == 422


# -- clients that leave ----------------------------------------------------------------


async def test_a_client_that_leaves_in_the_middle_finds_the_answer_later() -> None:
    world = in_memory(WAITING)
    async with serving(world.app) as address:
        port = int(address.rpartition(":")[2])
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /v1/held HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n"
                     b"Idempotency-Key: gone\r\n\r\n")  # fmt: skip
        await world.entered.wait()
        writer.transport.abort()
        await asyncio.sleep(0.02)
        world.go.set()
        async with httpx.AsyncClient(base_url=address) as one:
            answer = await one.post("/v1/held", headers={"Idempotency-Key": "gone"})
        assert (answer.content, replayed(answer)) == (b'{"run":1}', True)


async def test_a_client_that_leaves_in_the_middle_of_its_body_ran_nothing() -> None:
    world = in_memory()
    async with serving(world.app) as address:
        port = int(address.rpartition(":")[2])
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        head = b"POST /v1/payments HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        writer.write(head + b'Content-Length: 12\r\nIdempotency-Key: gone\r\n\r\n{"am')
        await writer.drain()
        writer.transport.abort()
        async with httpx.AsyncClient(base_url=address) as one:
            answer = await one.post(
                "/v1/payments", json={"amount": 5}, headers={"Idempotency-Key": "gone"}
            )
        assert (answer.status_code, replayed(answer), world.runs) == (201, False, 1)


async def asked(
    app: FastAPI, key: str, *, path: str = "/v1/payments", cancel_after: int | None = None
) -> list[Any]:
    """The messages of one request, which a server cancels after so many steps."""
    sent: list[Any] = []
    scope = {
        "type": "http", "method": "POST", "path": path, "query_string": b"",
        "root_path": "", "http_version": "1.1", "scheme": "http", "server": ("x", 80),
        "client": ("y", 1), "headers": [
            (b"idempotency-key", key.encode()), (b"content-length", b"14"),
            (b"content-type", b"application/json"),
        ],
    }  # fmt: skip

    async def receive() -> Any:
        await asyncio.sleep(0)
        return {"type": "http.request", "body": b'{"amount": 10}', "more_body": False}

    async def send(message: Any) -> None:
        await asyncio.sleep(0)
        sent.append(message)

    if cancel_after is None:
        await app(scope, receive, send)
        return sent
    task = asyncio.create_task(app(scope, receive, send))
    for _ in range(cancel_after):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    return sent


async def test_cancelled_at_any_await_the_key_is_free_or_answered() -> None:
    """By a server that cancels what nobody waits for any more."""
    world, answered = in_memory(), 0
    async with world.runtime.scope():
        for steps in range(100):
            before = world.runs
            cut = await asked(world.app, f"k-{steps}", cancel_after=steps)
            ran = world.runs - before
            (start, _) = await asked(world.app, f"k-{steps}")
            assert start["status"] == 201, f"cancelled after {steps} steps"
            again = (b"idempotency-replayed", b"true") in start["headers"]
            assert world.runs - before == (ran if again else ran + 1)
            assert again or len(cut) < 2, "an answer that was sent is the answer"
            answered += again
            if len(cut) == 2 and ran:
                break
    assert answered, "no request came to its end"


async def test_cancelled_in_the_handler_the_key_is_free() -> None:
    world = in_memory()
    async with world.runtime.scope():
        task = asyncio.create_task(asked(world.app, "k", path="/v1/held"))
        await world.entered.wait()
        task.cancel()
        await asyncio.wait([task])
        world.go.set()
        assert (await asked(world.app, "k", path="/v1/held"))[1]["body"] == b'{"run":2}'


# -- servers that fail ---------------------------------------------------------------


@pytest.mark.parametrize("lost", [scripts.CLAIM, scripts.COMPLETE])
async def test_a_lost_reply_runs_nothing_twice(
    valkey_dsn: str, valkey: ValkeyServer, lost: Any
) -> None:
    async with RespProxy(valkey.port) as proxy:
        world = on_server(proxy.dsn)
        async with client(world) as one:
            await one.post("/v1/payments", json={"amount": 1}, headers={"Idempotency-Key": "warm"})
            drop = proxy.drop_reply(script(lost))
            first = await one.post("/v1/payments", json={"amount": 5}, headers=KEY)
            await drop.seen()
            assert (first.status_code, first.json()["paymentNumber"]) == (201, 2)
            async with asyncio.timeout(10):
                while (
                    again := await one.post("/v1/payments", json={"amount": 5}, headers=KEY)
                ).status_code == 409:
                    await asyncio.sleep(0.02)
            assert (replayed(again), again.content) == (True, first.content)
        assert world.runs == 2


async def test_while_the_store_is_away_nothing_runs(valkey: ValkeyServer, valkey_dsn: str) -> None:
    async with RespProxy(valkey.port) as proxy:
        world = on_server(proxy.dsn)
        async with client(world) as one:
            proxy.refuse()
            proxy.cut()
            answer = await one.post("/v1/payments", json={"amount": 5}, headers=KEY)
            assert is_problem(answer, 503, "backend-unavailable")
            assert int(answer.headers["retry-after"]) >= 1
            assert str(proxy.port) not in answer.text
            assert world.runs == 0
            await proxy.accept()
            async with asyncio.timeout(10):
                while (
                    answer := await one.post("/v1/payments", json={"amount": 5}, headers=KEY)
                ).status_code == 503:
                    await asyncio.sleep(0.05)
            assert answer.status_code == 201
        assert world.runs == 1


async def test_open_by_choice_it_runs_without_protection(
    valkey: ValkeyServer, valkey_dsn: str
) -> None:
    async with RespProxy(valkey.port) as proxy:
        world = on_server(proxy.dsn, IdempotencySpec(name="payments", fail="open"))
        async with client(world) as one:
            proxy.refuse()
            proxy.cut()
            for run in (1, 2):
                answer = await one.post("/v1/payments", json={"amount": 5}, headers=KEY)
                assert (answer.status_code, answer.json()["paymentNumber"]) == (201, run)
                assert not replayed(answer)


async def test_ten_thousand_keys_leave_nothing_in_the_process() -> None:
    brief = IdempotencySpec(name="payments", ttl=timedelta(milliseconds=1))
    deps = MemoryDepsModule()
    runtime = ExecutionRuntime(deps=DepsPlan.from_modules(deps), specs=[brief])
    app, runs = FastAPI(), itertools.count(1)

    @app.post("/")
    @IdempotencyFeature(spec=brief, ctx_dep=runtime.get_context)
    async def pay() -> int:
        return next(runs)

    async with runtime.scope() as ctx:
        for number in range(10_000):
            await asked(app, f"k-{number}", path="/")
        port: Any = ctx.idempotency(brief)
        assert port.stats().runs == next(runs) - 1 == 10_000
        assert not port._leases.claims._open
        assert len(port._turned_away) == 0
        assert len(asyncio.all_tasks()) == 1


# -- wiring ----------------------------------------------------------------------------


def test_openapi_says_it_all() -> None:
    operation = in_memory().app.openapi()["paths"]["/v1/payments"]["post"]
    header = next(each for each in operation["parameters"] if each["name"] == "Idempotency-Key")
    assert (header["in"], header["required"]) == ("header", False)
    assert operation["responses"].keys() >= {"201", "400", "409", "413", "422", "503"}
    assert "Retry-After" in operation["responses"]["409"]["headers"]
    assert operation["description"] == "Take money."
    assert operation["responses"]["201"]["content"]["application/json"]["schema"] == {
        "$ref": "#/components/schemas/Payment"
    }
    names = {each["name"] for each in operation["parameters"]}
    assert names == {"Idempotency-Key", "x-user"}
    required = in_memory(required=True).app.openapi()["paths"]["/v1/payments"]["post"]
    header = next(each for each in required["parameters"] if each["name"] == "Idempotency-Key")
    assert header["required"] is True


def test_nonsense_is_refused_when_it_is_made() -> None:
    def context() -> Any: ...

    wrong: list[dict[str, Any]] = [
        {"spec": "payments"}, {"ctx_dep": None}, {"operation": ""}, {"operation": "x" * 256},
        {"max_body_bytes": -1}, {"max_request_bytes": -1},
    ]  # fmt: skip
    for each in wrong:
        with pytest.raises(ConfigurationError):
            IdempotencyFeature(**{"spec": SPEC, "ctx_dep": context, **each})

    def generator() -> Any:
        yield 1

    with pytest.raises(ConfigurationError, match="generator"):
        IdempotencyFeature(spec=SPEC, ctx_dep=context)(generator)


# -- in a transaction --------------------------------------------------------------------


async def test_effect_and_answer_are_one_transaction_of_a_dependency(postgres_dsn: str) -> None:
    connection = await asyncpg.connect(postgres_dsn)
    await connection.execute(idempotency_table_sql(("public", "idempotency")))
    await connection.execute("CREATE TABLE orders (number int)")
    client = PostgresClient()
    module = PostgresDepsModule(
        client=client,
        tx={"orders"},
        idempotency=PostgresIdempotencyConfig(table=("public", "idempotency")),
    )
    runtime = ExecutionRuntime(
        deps=DepsPlan.from_modules(module),
        lifecycle=LifecyclePlan.from_steps(postgres_lifecycle_step(dsn=postgres_dsn)),
        specs=[SPEC],
    )
    app = FastAPI(lifespan=runtime_lifespan(runtime))
    register_exception_handlers(app)
    fails = True

    async def transaction() -> AsyncIterator[None]:
        async with runtime.get_context().transaction("orders"):
            yield
            if fails:
                raise RuntimeError("before the commit")

    @app.post("/orders", dependencies=[Depends(transaction)])
    @IdempotencyFeature(spec=SPEC, ctx_dep=runtime.get_context)
    async def order() -> dict[str, str]:
        await client.rows("INSERT INTO orders VALUES (1)", doing="order", write=True)
        return {"order": "taken"}

    @app.post("/declined", dependencies=[Depends(transaction)])
    @IdempotencyFeature(spec=SPEC, ctx_dep=runtime.get_context)
    async def declined() -> None:
        await client.rows("INSERT INTO orders VALUES (2)", doing="order", write=True)
        raise HTTPException(402, "after the effect")

    async with client_of(app) as one:
        with contextlib.suppress(httpx.HTTPError):
            # Sent before it is rolled back, by FastAPI; the connection does not survive that.
            await one.post("/orders", headers={**KEY, "Connection": "close"})
        fails = False
        assert await connection.fetchval("SELECT count(*) FROM orders") == 0
        async with asyncio.timeout(10):
            while (again := await one.post("/orders", headers=KEY)).status_code == 409:
                await asyncio.sleep(0.02)
        assert not replayed(again)
        assert replayed(await one.post("/orders", headers=KEY))
        for second in (False, True):  # the effect is rolled back, the answer to it stands
            answer = await one.post("/declined", headers=KEY)
            assert (answer.status_code, replayed(answer)) == (402, second)
        assert await connection.fetchval("SELECT count(*) FROM orders") == 1
    await connection.close()
