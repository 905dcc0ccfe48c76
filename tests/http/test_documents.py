"""Document endpoints over real sockets, on PostgreSQL and Valkey where it matters."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import httpx
import pytest
import pytest_asyncio
from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException
from fastapi.routing import APIRoute
from pydantic import Field, SecretStr
from tests.http.catalogue import (
    ONCE,
    SNAPSHOT,
    TABLE,
    ProductRead,
    application,
    memory_runtime,
    products,
    server_runtime,
)
from tests.http.serving import replica

from forze.application.contracts.document import DocumentSpec
from forze.application.execution import DepsPlan, ExecutionRuntime
from forze.application.integrations.document.query import DocumentQuery
from forze.domain.models import CreateDocumentCmd, Document, ReadDocument
from forze.errors import ConfigurationError
from forze.testing.servers import ValkeyServer
from forze.testing.serving import client_of
from forze_fastapi import (
    attach_document_endpoints,
    bind_request,
    register_exception_handlers,
    runtime_lifespan,
)
from forze_fastapi.documents.etag import Tagger
from forze_memory import MemoryDepsModule

LAMP = {"name": "Lamp", "price": 30, "color": "red"}
JSON = {"Content-Type": "application/json"}
ANY_ID = "01890000-0000-7000-8000-000000000000"


in_one_loop = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client() -> AsyncIterator[httpx.AsyncClient]:
    """A client of products kept in memory, for tests that care for their own only."""
    async with in_memory() as client:
        yield client


@asynccontextmanager
async def in_memory(
    spec: DocumentSpec[Any, Any, Any] | None = None, **options: Any
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of products kept in memory."""
    spec = spec or products()
    async with client_of(application(memory_runtime(spec), spec, **options)) as client:
        yield client


@asynccontextmanager
async def on_servers(
    postgres_dsn: str, valkey_dsn: str, **options: Any
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of products kept in PostgreSQL and cached in Valkey."""
    await run_sql(postgres_dsn, TABLE)
    spec = products(snapshot=SNAPSHOT)
    app = application(server_runtime(postgres_dsn, valkey_dsn, spec), spec, **options)
    async with client_of(app) as client:
        yield client


async def run_sql(dsn: str, statement: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def created(client: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    answer = await client.post("/products", json={**LAMP, **fields})
    assert answer.status_code == 201, answer.text
    return answer


def expect_problem(answer: httpx.Response, status: int, kind: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert body["type"] == f"urn:forze:problem:{kind}"
    return body


def names(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [each["name"] for each in answer.json()["items"]]


# -- one document, from its creation to its end ---------------------------------


async def test_a_document_lives_over_http(postgres_dsn: str, valkey_dsn: str) -> None:
    async with on_servers(postgres_dsn, valkey_dsn) as client:
        first = await created(client, tags=["a"])
        where, tag = first.headers["location"], first.headers["etag"]
        assert where == f"/products/{first.json()['id']}"
        read = await client.get(where)
        assert (read.json(), read.headers["etag"]) == (first.json(), tag)
        assert read.headers["cache-control"] == "private, no-cache"
        changed = await client.patch(where, json={"price": 40}, headers={"If-Match": tag})
        assert (changed.json()["rev"], changed.json()["price"]) == (2, 40)
        assert changed.json()["name"] == "Lamp"
        assert changed.headers["etag"] != tag
        assert (await client.get(where)).json() == changed.json()
        assert (await client.delete(where)).status_code == 204
        expect_problem(await client.get(where), 404, "not-found")
        expect_problem(await client.delete(where), 404, "not-found")
        expect_problem(await client.patch(where, json={}, params={"rev": 1}), 404, "not-found")


@in_one_loop
async def test_an_id_that_is_taken_is_a_conflict(client: httpx.AsyncClient) -> None:
    taken = str(uuid4())
    assert (await created(client, id=taken)).json()["id"] == taken
    expect_problem(await client.post("/products", json={**LAMP, "id": taken}), 409, "conflict")


@in_one_loop
async def test_head_is_get_without_the_body(client: httpx.AsyncClient) -> None:
    where = (await created(client)).headers["location"]
    got, head = await client.get(where), await client.head(where)
    assert (head.status_code, head.content) == (200, b"")
    for name in ("etag", "content-length", "cache-control", "content-type"):
        assert head.headers[name] == got.headers[name]
    tag = {"If-None-Match": got.headers["etag"]}
    assert (await client.head(where, headers=tag)).status_code == 304
    assert (await client.head("/products")).status_code == 200


# -- entity tags ------------------------------------------------------------------


@in_one_loop
async def test_if_none_match(client: httpx.AsyncClient) -> None:
    first = await created(client)
    where, tag = first.headers["location"], first.headers["etag"]
    for field, status in {
        tag: 304,
        f"W/{tag}": 304,
        f'"other" ,, {tag},': 304,
        "*": 304,
        '"other"': 200,
        tag.strip('"'): 200,
        "": 200,
    }.items():
        answer = await client.get(where, headers={"If-None-Match": field})
        assert answer.status_code == status, field
        assert answer.headers["etag"] == tag
        assert (answer.content == b"") == (status == 304)
        assert answer.headers["cache-control"] == "private, no-cache"


@in_one_loop
async def test_tags_may_come_in_several_lines(client: httpx.AsyncClient) -> None:
    first = await created(client)
    lines = [("If-None-Match", '"other"'), ("If-None-Match", first.headers["etag"])]
    answer = await client.get(first.headers["location"], headers=lines)
    assert answer.status_code == 304


async def test_not_modified_needs_no_postgresql(postgres_dsn: str, valkey_dsn: str) -> None:
    async with on_servers(postgres_dsn, valkey_dsn) as client:
        cached, other = await created(client), await created(client)
        where, tag = cached.headers["location"], cached.headers["etag"]
        await client.get(where)
        await run_sql(postgres_dsn, "ALTER TABLE products RENAME TO elsewhere")  # any query fails
        for field in (tag, f"W/{tag}", "*"):
            answer = await client.get(where, headers={"If-None-Match": field})
            assert answer.status_code == 304
        assert (await client.get(where)).json() == cached.json()
        expect_problem(await client.get(other.headers["location"]), 500, "configuration")


async def test_every_process_gives_the_same_tag(postgres_dsn: str, valkey_dsn: str) -> None:
    async with on_servers(postgres_dsn, valkey_dsn) as client:
        first = await created(client)
        with replica(
            "tests.http.catalogue:application_from_environment",
            POSTGRES_DSN=postgres_dsn,
            VALKEY_DSN=valkey_dsn,
            PYTHONHASHSEED="1",
        ) as other:
            answer = await client.get(f"{other.address}{first.headers['location']}")
        assert answer.json() == first.json()
        assert answer.headers["etag"] == first.headers["etag"]


def test_whatever_a_representation_depends_on_is_in_its_tag() -> None:
    class Wider(ProductRead):
        stock: int = 0

    now = datetime(2026, 1, 1, tzinfo=UTC)
    document = ReadDocument(id=UUID(ANY_ID), rev=1, created_at=now, last_update_at=now)
    tagger = Tagger(ProductRead, "products")
    later = now.replace(microsecond=1)
    changes: list[dict[str, Any]]
    changes = [{}, {"id": uuid4()}, {"rev": 2}, {"created_at": later}, {"last_update_at": later}]
    tags = {tagger.tag(document.model_copy(update=each)) for each in changes}
    tags |= {Tagger(Wider, "products").tag(document), Tagger(ProductRead, "others").tag(document)}
    assert len(tags) == 7
    assert tagger.tag(document) == Tagger(ProductRead, "products").tag(document)


async def test_a_view_has_tags_only_where_they_are_asked_for(
    postgres_dsn: str, valkey_dsn: str
) -> None:
    await run_sql(postgres_dsn, TABLE)
    await run_sql(postgres_dsn, "CREATE VIEW shown AS SELECT * FROM products")
    spec = DocumentSpec(name="products", read=ProductRead, write=products().write)
    for etag, offered in ((None, False), (True, True), (False, False)):
        runtime = server_runtime(postgres_dsn, valkey_dsn, spec, read="shown")
        async with client_of(application(runtime, spec, etag=etag)) as web:
            first = await created(web)
            assert ("etag" in first.headers) == offered
            read = await web.get(first.headers["location"])
            assert ("etag" in read.headers) == offered
            guess = {"If-Match": '"anything"'}
            answer = await web.patch(first.headers["location"], json={"price": 1}, headers=guess)
            expect_problem(answer, 412, "precondition-failed")


# -- writes on top of a revision --------------------------------------------------


@in_one_loop
async def test_an_update_says_what_it_is_made_on_top_of(client: httpx.AsyncClient) -> None:
    first = await created(client)
    where, tag = first.headers["location"], first.headers["etag"]
    expect_problem(await client.patch(where, json={"price": 1}), 428, "precondition-required")
    assert (await client.get(where)).json() == first.json()
    assert (await client.patch(where, json={"price": 1, "rev": 1})).json()["rev"] == 2
    by_query = await client.patch(where, json={"price": 2}, params={"rev": 2})
    assert by_query.json()["rev"] == 3
    stale = await client.patch(where, json={"price": 9, "rev": 1})
    assert expect_problem(stale, 409, "revision-mismatch")["current"] == 3
    late = await client.patch(where, json={"price": 9}, headers={"If-Match": tag})
    expect_problem(late, 412, "precondition-failed")
    anything = await client.patch(where, json={"price": 3}, headers={"If-Match": "*"})
    assert anything.json()["price"] == 3
    both = await client.patch(where, json={"price": 9, "rev": 4}, params={"rev": 3})
    expect_problem(both, 409, "conflict")
    assert (await client.get(where)).json()["rev"] == 4
    expect_problem(await client.patch(f"/products/{ANY_ID}", json={}), 404, "not-found")


@in_one_loop
async def test_a_weak_tag_allows_no_write(client: httpx.AsyncClient) -> None:
    first = await created(client)
    weak = {"If-Match": f"W/{first.headers['etag']}"}
    answer = await client.patch(first.headers["location"], json={"price": 1}, headers=weak)
    expect_problem(answer, 412, "precondition-failed")
    read = await client.get(first.headers["location"], headers=weak)
    expect_problem(read, 412, "precondition-failed")


@in_one_loop
async def test_a_deletion_may_be_conditional(client: httpx.AsyncClient) -> None:
    first = await created(client)
    where, tag = first.headers["location"], {"If-Match": first.headers["etag"]}
    await client.patch(where, json={"price": 1, "rev": 1})
    expect_problem(await client.delete(where, headers=tag), 412, "precondition-failed")
    late = await client.delete(where, params={"rev": 1})
    assert expect_problem(late, 409, "revision-mismatch")["current"] == 2
    assert (await client.get(where)).status_code == 200
    now = {"If-Match": (await client.get(where)).headers["etag"]}
    assert (await client.delete(where, headers=now)).status_code == 204
    expect_problem(await client.delete(where, headers=now), 404, "not-found")


async def test_of_concurrent_updates_exactly_one_wins(postgres_dsn: str, valkey_dsn: str) -> None:
    async with on_servers(postgres_dsn, valkey_dsn) as client:
        first = await created(client)
        where, tag = first.headers["location"], {"If-Match": first.headers["etag"]}
        answers = await asyncio.gather(
            *(client.patch(where, json={"price": n}, headers=tag) for n in range(100, 120))
        )
        won = [each.json() for each in answers if each.status_code == 200]
        assert len(won) == 1
        for each in answers:
            if each.status_code != 200:
                expect_problem(each, 412, "precondition-failed")
        assert (await client.get(where)).json() == won[0]
        assert won[0]["rev"] == 2


@pytest.mark.parametrize("method", ["PATCH", "DELETE"])
async def test_whoever_comes_between_judging_and_writing_makes_it_fail(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged, go_on = asyncio.Event(), asyncio.Event()
    get = DocumentQuery.get

    async def held(self: Any, *args: Any, **given: Any) -> Any:
        document = await get(self, *args, **given)
        judged.set()
        await go_on.wait()
        return document

    async with in_memory() as client:
        first = await created(client)
        where, tag = first.headers["location"], {"If-Match": first.headers["etag"]}
        monkeypatch.setattr(DocumentQuery, "get", held)
        late = client.request(
            method, where, headers=tag, json={"price": 1} if method == "PATCH" else None
        )
        writing = asyncio.create_task(late)
        await judged.wait()
        between = await client.patch(where, json={"price": 77, "rev": 1})
        go_on.set()
        assert between.status_code == 200
        expect_problem(await writing, 412, "precondition-failed")
        assert (await client.get(where)).json() == between.json()


# -- lists ------------------------------------------------------------------------


@asynccontextmanager
async def a_shelf(**options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Five products: names a to e, prices 10 to 50, red and blue in turn, e without a color."""
    async with in_memory(**options) as client:
        for number, name in enumerate("abcde", 1):
            color = [None, "red", "blue", "red", "blue"][number % 5]
            await created(client, name=name, price=10 * number, color=color, weight=number / 2)
        yield client


FOUND = {
    "": "abcde",
    "price=20": "b",
    "price__ne=20": "acde",
    "price__gte=20&price__lt=40": "bc",
    "price__gt=20&price__lte=40": "cd",
    "price__in=10&price__in=50": "ae",
    "price__not_in=10&price__not_in=50": "bcd",
    "color=red": "ac",
    "color__in=red&color__in=blue": "abcd",
    "color__is_null=true": "e",
    "color__is_null=false&price__gt=10": "bcd",
    "name__contains=c": "c",
    "name__starts_with=d": "d",
    "name__gt=c": "de",
    "weight__lte=1": "ab",
    "available=true&color=blue": "bd",
    "available=false": "",
    "vat__lt=0.2&name=a": "a",
    "created_at__lt=2000-01-01T00:00:00Z": "",
    "rev=1&id__ne=01890000-0000-7000-8000-000000000000": "abcde",
    "sort=-price": "edcba",
    "sort=color,-price": "dbcae",
    "sort=-color,price,color": "acbde",
}


async def test_filters_and_sort() -> None:
    async with a_shelf() as client:
        for query, wanted in FOUND.items():
            found = names(await client.get(f"/products?{query}"))
            if "sort" not in query:
                found.sort()
            assert "".join(found) == wanted, query


async def test_pages_follow_each_other_by_cursor_and_by_link() -> None:
    async with a_shelf() as client:
        query: dict[str, Any] = {"sort": "-price", "limit": 2, "price__gte": 20}
        page = await client.get("/products", params=query)
        assert names(page) == ["e", "d"]
        assert page.headers["link"].endswith('>; rel="next"')
        by_link = await client.get(page.links["next"]["url"])
        after = page.json()["next_cursor"]
        by_cursor = await client.get("/products", params={**query, "cursor": after})
        assert names(by_link) == names(by_cursor) == ["c", "b"]
        assert by_link.json()["next_cursor"] is None
        assert "link" not in by_link.headers
        empty = await client.get("/products", params={"price__gt": 1000})
        assert empty.json() == {"items": [], "next_cursor": None}


REFUSED = {
    "colour=red": "colour",
    "price__like=1": "price__like",
    "tags=a": "tags",
    "limit=0": "limit",
    "limit=100000": "limit",
    "limit=x": "limit",
    "price=cheap": "price",
    "price=9223372036854775808": "price",
    "price__in=1&price__in=x": "price__in.1",
    "weight=nan": "weight",
    "weight__gt=1e999": "weight__gt",
    "vat=1e999999999": "vat",
    "color=mauve": "color",
    "created_at__gt=2024-01-01T00:00:00": "created_at__gt",
    "id=7": "id",
    "sort=tags": "sort",
    "sort=": "sort",
    "sort=price;name": "sort",
    "color__is_null=perhaps": "color__is_null",
    "color__is_null=0": "color__is_null",
    "available=1": "available",
    "created_at=0": "created_at",
    "released_at__lt=1e3": "released_at__lt",
    "&".join(f"price__in={n}" for n in range(101)): "price__in",
}


@in_one_loop
async def test_what_a_list_does_not_understand_is_refused(client: httpx.AsyncClient) -> None:
    for query, name in REFUSED.items():
        wrong = expect_problem(await client.get(f"/products?{query}"), 422, "validation")["errors"]
        assert [(each["location"], each["name"]) for each in wrong] == [("query", name)]


@in_one_loop
async def test_a_value_given_twice_is_refused(client: httpx.AsyncClient) -> None:
    answer = await client.get("/products?price=1&price=2")
    assert "price__in" in expect_problem(answer, 422, "validation")["detail"]


@pytest.mark.parametrize("pages", ["keyset", "snapshot"])
async def test_a_cursor_that_is_none_is_refused(pages: Any) -> None:
    spec = products(snapshot=SNAPSHOT)
    async with in_memory(spec, pages=pages) as client:
        for n in range(3):
            await created(client, price=n)
        mine = (await client.get("/products?limit=1&sort=price")).json()["next_cursor"]
        nested, null = "W1tb" * 5000, "W1sicHJpY2UiLGZhbHNlLCJcdTAwMDAiXSxbImlkIixmYWxzZSwxXV0="
        for cursor in ("", "x", "%00", "W10=", "bnVsbA==", f"{mine}%3B", "-" * 10_000 + "%0A"):
            answer = await client.get(f"/products?limit=1&sort=price&cursor={cursor}")
            wrong = expect_problem(answer, 422, "validation")["errors"]
            assert [(each["location"], each["name"]) for each in wrong] == [("query", "cursor")]
        for cursor in (nested, null, mine[:-4], f"{mine[:-8]}{mine[-4:]}"):
            answer = await client.get(f"/products?limit=1&sort=price&cursor={cursor}")
            assert expect_problem(answer, 404, "no-such-page")["field"] == "cursor"
        other = await client.get("/products", params={"sort": "-price", "cursor": mine})
        assert expect_problem(other, 404, "no-such-page")["field"] == "cursor"
        assert (
            await client.get("/products", params={"sort": "price", "cursor": mine})
        ).status_code == 200


async def test_a_snapshot_stands_still_and_can_be_gone(
    postgres_dsn: str, valkey: ValkeyServer, valkey_dsn: str
) -> None:
    async with on_servers(postgres_dsn, valkey_dsn, pages="snapshot") as client:
        made = [await created(client, name=name) for name in "abcd"]
        first = await client.get("/products?sort=name&limit=2")
        assert (names(first), first.json()["total"]) == (["a", "b"], 4)
        await client.delete(made[2].headers["location"])
        await created(client, name="bb")
        second = await client.get(first.links["next"]["url"])
        assert (names(second), second.json()["next_cursor"]) == (["d"], None)
        assert second.json()["missing"] == [made[2].json()["id"]]
        valkey.ask("FLUSHALL")
        expect_problem(await client.get(first.links["next"]["url"]), 410, "snapshot-gone")


# -- what cannot be accepted ------------------------------------------------------


UNHOLDABLE = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'{"name": "a"}',
    b'{"name": "a", "price": NaN}',
    b'{"name": "a", "price": 1, "weight": Infinity}',
    b'{"name": "a", "price": 1, "weight": 1e999}',
    b'{"name": "a", "price": 1, "weight": -1e999}',
    b'{"name": "a", "price": 1, "price": 2}',
    b'{"name": "a\\u0000", "price": 1}',
    b'{"name": "a", "price": 1, "tags": ["\\u0000"]}',
    b'{"name": "\\ud800", "price": 1}',
    b'{"name": "a", "price": 1, "tags": ["\\uDFFF"]}',
    b'{"name": "a", "price": 1, "\\ud800": 1}',
    b'{"name": "\xff", "price": 1}',
    b'{"name": "\xed\xa0\x80", "price": 1}',
    b'{"name": "a", "price": 99999999999999999999}',
    b'{"name": "a", "price": true}',
    b'{"name": "a", "price": "5"}',
    b'{"name": "a", "price": 5.5}',
    b'{"name": "a", "price": 1, "weight": "1.5"}',
    b'{"name": "a", "price": 1, "weight": false}',
    b'{"name": "a", "price": 1, "available": 0}',
    b'{"name": "a", "price": 1, "available": "true"}',
    b'{"name": "a", "price": 1%s}' % (b"0" * 5000),
    b'{"name": "a", "price": 1, "tags": ' + b"[" * 100_000,
    b'{"name": "a", "price": 1, "prise": 2}',
    b'{"name": "a", "price": 1, "rev": 2}',
    b'{"name": "a", "price": 1, "id": 7}',
]


@in_one_loop
async def test_a_body_that_cannot_be_held_is_refused(client: httpx.AsyncClient) -> None:
    before = (await client.get("/products")).content
    for body in UNHOLDABLE:
        answer = await client.post("/products", content=body, headers=JSON)
        assert expect_problem(answer, 422, "validation")["errors"], body[:80]
    assert (await client.get("/products")).content == before


async def test_text_that_looks_suspicious_and_is_not_is_kept(
    postgres_dsn: str, valkey_dsn: str
) -> None:
    async with on_servers(postgres_dsn, valkey_dsn) as client:
        text = "\\u0000 \U0001f600 \\ud800"
        assert (await created(client, name=text)).json()["name"] == text
        body = b'{"name": "\\ud83d\\ude00", "price": 1}'
        paired = await client.post("/products", content=body, headers=JSON)
        assert paired.json()["name"] == "\U0001f600"


async def test_what_postgresql_cannot_hold_is_refused_before_it(
    postgres_dsn: str, valkey_dsn: str
) -> None:
    async with on_servers(postgres_dsn, valkey_dsn) as client:
        for query in ("name=%00", "name__contains=a%00", "name__in=%00"):
            refused = await client.get(f"/products?{query}")
            assert expect_problem(refused, 422, "validation")["errors"]
        null = "W1sibmFtZSIsZmFsc2UsIlx1MDAwMCJdLFsiaWQiLGZhbHNlLCJ4Il1d"
        refused = await client.get(f"/products?sort=name&cursor={null}")
        expect_problem(refused, 404, "no-such-page")
        for edge in ("0001-01-01T00:00:00%2B14:00", "9999-12-31T23:59:59-14:00"):
            answer = await client.get(f"/products?created_at__gt={edge}")
            assert answer.status_code in (200, 422), answer.text
        exact = await client.get("/products?vat=0." + "1" * 900)
        assert exact.status_code == 200


@in_one_loop
async def test_an_id_that_is_no_uuid_is_refused(client: httpx.AsyncClient) -> None:
    for method in ("GET", "HEAD", "PATCH", "DELETE"):
        for name in ("7", "x" * 300, "%00", "1890000-0000-7000-8000-000000000000"):
            body = {"rev": 1} if method == "PATCH" else None
            answer = await client.request(method, f"/products/{name}", json=body)
            assert answer.status_code == 422
            if method != "HEAD":
                wrong = expect_problem(answer, 422, "validation")["errors"]
                assert [(each["location"], each["name"]) for each in wrong] == [("path", "id")]


@in_one_loop
async def test_a_malformed_if_match_is_refused(client: httpx.AsyncClient) -> None:
    where = (await created(client)).headers["location"]
    for field in ("", "abc", '"abc', '"a" "b"', '*, "a"', '"a";', '"a\x20"'):
        for method in ("GET", "PATCH", "DELETE"):
            body = {"price": 1, "rev": 1} if method == "PATCH" else None
            answer = await client.request(method, where, json=body, headers={"If-Match": field})
            expect_problem(answer, 400, "malformed-header")
    assert (await client.get(where)).json()["rev"] == 1


@in_one_loop
async def test_a_rev_that_is_none_is_refused(client: httpx.AsyncClient) -> None:
    where = (await created(client)).headers["location"]
    for rev in ("0", "-1", "x", "1.0", "+1", "9223372036854775808"):
        query = {"rev": rev}
        answer = await client.patch(where, json={"price": 1}, params=query)
        expect_problem(answer, 422, "validation")
        expect_problem(await client.delete(where, params=query), 422, "validation")


async def test_a_body_above_the_limit_is_refused() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield body[:500]
        yield body[500:]

    body = json.dumps({**LAMP, "tags": ["x" * 1000]}).encode()
    async with in_memory(max_body_bytes=1000) as client:
        for sent in (body, pieces()):
            answer = await client.post("/products", content=sent, headers=JSON)
            assert expect_problem(answer, 413, "body-too-large")["max_bytes"] == 1000
        await created(client)


# -- choices ----------------------------------------------------------------------


def routes_of(app: FastAPI) -> set[str]:
    return {
        f"{method.upper()} {path}"
        for path, operations in app.openapi()["paths"].items()
        for method in operations
    }


def attached(router: Any, spec: Any, **options: Any) -> Any:
    attach_document_endpoints(
        router, document=spec, ctx_dep=memory_runtime(spec).get_context, **options
    )
    return router


class Thing(ReadDocument):
    pass


def things(**write: Any) -> DocumentSpec[Any, Any, Any]:
    return DocumentSpec(name="things", read=Thing, write=write or None)


def test_where_the_routes_are() -> None:
    by_prefix, included = FastAPI(), FastAPI()
    by_prefix.include_router(attached(APIRouter(prefix="/shelf"), things()))
    included.include_router(attached(APIRouter(), things(), prefix=""), prefix="/shelf")
    for app in (by_prefix, included, attached(FastAPI(), things(), prefix="/shelf/")):
        assert routes_of(app) == {"GET /shelf", "GET /shelf/{id}"}
    assert routes_of(attached(FastAPI(), things(), include=["get"])) == {"GET /things/{id}"}
    assert routes_of(attached(FastAPI(), things(), exclude=["get"])) == {"GET /things"}


def test_two_kinds_need_two_places() -> None:
    router = attached(APIRouter(prefix="/api"), things(), include=["list"])
    attached(router, things(), include=["get"])
    other = DocumentSpec(name="others", read=Thing)
    with pytest.raises(ConfigurationError, match=r"others.*things_list at /api already.*prefix="):
        attached(router, other)
    attached(router, other, prefix="/others")
    assert len(router.routes) == 8


def test_a_spec_gets_the_routes_it_has_types_for() -> None:
    fixed = things(domain=Document, create_cmd=CreateDocumentCmd)
    assert routes_of(attached(FastAPI(), fixed)) == {
        "POST /things", "GET /things", "GET /things/{id}", "DELETE /things/{id}",
    }  # fmt: skip
    with pytest.raises(ConfigurationError, match="include"):
        attached(FastAPI(), fixed, include=["update"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"include": ["patch"]}, "include"),
        ({"include": "get"}, "include"),
        ({"exclude": ["put"]}, "exclude"),
        ({"idempotent": ["get"]}, "idempotent"),
        ({"dependencies": {"put": []}}, "dependencies"),
        ({"filterable": ["colour"]}, "filterable"),
        ({"filterable": "color"}, "filterable"),
        ({"filterable": ["tags"]}, "filterable"),
        ({"filterable": {"available": ["gt"]}}, "filterable"),
        ({"sortable": ["tags"]}, "sortable"),
        ({"pages": "snapshot"}, "pages"),
        ({"pages": "offset"}, "pages"),
        ({"page_size": 0}, "page_size"),
        ({"max_page_size": 1001}, "max_page_size"),
        ({"page_size": 20, "max_page_size": 10}, "page_size"),
        ({"max_body_bytes": 0}, "max_body_bytes"),
        ({"name": "my products"}, "name"),
        ({"prefix": "products"}, "prefix"),
        ({"vary": "X-Tenant-ID"}, "vary"),
        ({"tags": "products"}, "tags"),
        ({"ctx_dep": None}, "ctx_dep"),
    ],
)
def test_an_option_that_cannot_be_is_told(options: dict[str, Any], said: str) -> None:
    given = {"document": products(), "ctx_dep": lambda: None, **options}
    with pytest.raises(ConfigurationError, match=said):
        attach_document_endpoints(APIRouter(), **given)


async def test_filterable_and_sortable_bound_what_may_be_asked() -> None:
    async with a_shelf(filterable={"price": ["gte"]}, sortable=["name"]) as client:
        assert names(await client.get("/products?price__gte=40&sort=-name")) == ["e", "d"]
        for query in ("price=10", "price__lt=10", "name=a", "sort=price"):
            expect_problem(await client.get(f"/products?{query}"), 422, "validation")


class Account(Document):
    owner_name: str
    password: SecretStr
    note: str = ""


class AccountCreate(CreateDocumentCmd):
    owner_name: str = Field(alias="ownerName")
    password: SecretStr
    note: str = ""


class AccountRead(ReadDocument):
    owner_name: str = Field(alias="ownerName")
    password: SecretStr
    note: str = Field("", exclude=True)


ACCOUNTS = DocumentSpec(
    name="accounts", read=AccountRead, write={"domain": Account, "create_cmd": AccountCreate}
)


async def test_names_are_those_of_the_json_and_nothing_hidden_can_be_asked_for() -> None:
    app = application(memory_runtime(ACCOUNTS), ACCOUNTS)
    async with client_of(app) as client:
        body = {"ownerName": "Ada", "password": "secret", "note": "hidden"}
        first = await client.post("/accounts", json=body)
        assert first.status_code == 201, first.text
        assert (first.json()["ownerName"], first.json()["password"]) == ("Ada", "**********")
        assert "note" not in first.json()
        found = await client.get("/accounts?ownerName__starts_with=A&sort=-ownerName")
        assert found.json()["items"] == [first.json()]
        for query in ("owner_name=Ada", "password=secret", "note=hidden", "sort=note"):
            expect_problem(await client.get(f"/accounts?{query}"), 422, "validation")


def test_a_field_called_like_a_parameter_of_the_page_is_told() -> None:
    class Quota(ReadDocument):
        limit: int

    spec = DocumentSpec(name="quotas", read=Quota)
    with pytest.raises(ConfigurationError, match="filterable"):
        attached(APIRouter(), spec)
    attached(APIRouter(), spec, filterable={"limit": ["gte"]})


async def test_headers_of_what_is_read_can_be_chosen() -> None:
    chosen: dict[str, Any] = {
        "cache_control": "public, max-age=60",
        "vary": ("X-Tenant-ID", "Accept"),
    }
    async with in_memory(**chosen) as client:
        where = (await created(client)).headers["location"]
        for path in (where, "/products"):
            answer = await client.get(path)
            assert answer.headers["cache-control"] == "public, max-age=60"
            assert answer.headers["vary"] == "X-Tenant-ID, Accept"
    async with in_memory(cache_control=None, etag=False) as client:
        read = await client.get((await created(client)).headers["location"])
        assert not {"etag", "cache-control"} & set(read.headers)


async def test_dependencies_stand_before_the_routes_they_are_for() -> None:
    async def staff(x_staff: str = Header("")) -> None:
        if x_staff != "yes":
            raise HTTPException(403)

    writing = {each: [Depends(staff)] for each in ("create", "update", "delete")}
    async with in_memory(dependencies=writing) as client:
        assert (await client.post("/products", json=LAMP)).status_code == 403
        answer = await client.post("/products", json=LAMP, headers={"X-Staff": "yes"})
        assert (await client.get(answer.headers["location"])).status_code == 200
        assert (await client.delete(answer.headers["location"])).status_code == 403


async def test_the_context_may_come_from_any_dependency() -> None:
    spec = products()
    runtime = memory_runtime(spec)

    async def who(x_user: str = Header("")) -> str:
        return x_user

    async def asynchronous(user: str = Depends(who)) -> Any:
        assert user == "ada"
        return runtime.get_context()

    def synchronous() -> Any:
        return runtime.get_context()

    for ctx_dep in (asynchronous, synchronous):
        app = FastAPI(lifespan=runtime_lifespan(runtime))
        attach_document_endpoints(app, document=spec, ctx_dep=ctx_dep, idempotency=ONCE)
        async with client_of(app) as client:
            client.headers["X-User"] = "ada"
            assert (await client.get((await created(client)).headers["location"])).is_success


@pytest.mark.parametrize("prefix", ["", "/v1"])
async def test_a_method_that_is_not_allowed_is_told_which_are(prefix: str) -> None:
    spec = products()
    runtime = memory_runtime(spec)
    app = FastAPI(lifespan=runtime_lifespan(runtime))
    register_exception_handlers(app)
    app.include_router(
        attached(APIRouter(prefix="/products"), spec, exclude=["delete"]), prefix=prefix
    )

    @app.post(f"{prefix}/products/{{id}}")
    async def mine(id: str) -> str:
        return id

    async with client_of(app) as client:
        for method in ("PUT", "OPTIONS", "DELETE"):
            one = await client.request(method, f"{prefix}/products/{ANY_ID}")
            assert (one.status_code, one.headers["allow"]) == (405, "GET, HEAD, PATCH")
        every = await client.put(f"{prefix}/products")
        assert (every.status_code, every.headers["allow"]) == (405, "GET, HEAD, POST")
        assert (await client.post(f"{prefix}/products/7")).json() == "7"


async def test_problems_also_where_nobody_registered_them() -> None:
    class Mine(APIRoute):
        pass

    spec = products()
    runtime = memory_runtime(spec)
    app = FastAPI(lifespan=runtime_lifespan(runtime))
    router = APIRouter(prefix="/products", route_class=Mine)
    attach_document_endpoints(router, document=spec, ctx_dep=runtime.get_context)
    assert all(isinstance(each, Mine) for each in router.routes)
    app.include_router(router)
    async with client_of(app) as client:
        expect_problem(await client.get(f"/products/{ANY_ID}"), 404, "not-found")


# -- tenants, idempotency ---------------------------------------------------------


async def test_tenants_see_their_own_documents_only() -> None:
    async def tenant(x_tenant: str | None = Header(None)) -> str | None:
        return x_tenant

    spec = DocumentSpec(name="products", read=ProductRead, write=products().write)
    module = MemoryDepsModule(documents={"products": {"tenant_aware": True}})
    runtime = ExecutionRuntime(deps=DepsPlan.from_modules(module), specs=[spec])
    binding = [Depends(bind_request(tenant=tenant, required=False))]
    app = application(runtime, spec, dependencies=binding)
    async with client_of(app) as client:
        expect_problem(await client.post("/products", json=LAMP), 400, "tenant-required")
        mine, yours = {"X-Tenant": "a"}, {"X-Tenant": "b"}
        first = await client.post("/products", json=LAMP, headers=mine)
        where = first.headers["location"]
        assert (await client.get(where, headers=mine)).status_code == 200
        expect_problem(await client.get(where, headers=yours), 404, "not-found")
        expect_problem(await client.delete(where, headers=yours), 404, "not-found")
        same = {**yours, "If-None-Match": first.headers["etag"]}
        expect_problem(await client.get(where, headers=same), 404, "not-found")
        assert names(await client.get("/products", headers=yours)) == []
        expect_problem(await client.get(where), 400, "tenant-required")


async def test_creation_is_idempotent_where_asked(postgres_dsn: str, valkey_dsn: str) -> None:
    async with on_servers(postgres_dsn, valkey_dsn, idempotency=ONCE) as client:
        key = {"Idempotency-Key": '"8e03978e"'}
        first = await client.post("/products", json=LAMP, headers=key)
        again = await client.post("/products", json=LAMP, headers=key)
        assert (again.status_code, again.content) == (201, first.content)
        for name in ("etag", "location"):
            assert again.headers[name] == first.headers[name]
        other = await client.post("/products", json={**LAMP, "price": 31}, headers=key)
        expect_problem(other, 422, "idempotency-mismatch")
        assert len(names(await client.get("/products"))) == 1


async def test_updates_can_be_idempotent_too() -> None:
    async with in_memory(idempotency=ONCE, idempotent={"create", "update"}) as client:
        first = await created(client)
        where = first.headers["location"]
        key = {"Idempotency-Key": "1", "If-Match": first.headers["etag"]}
        done = await client.patch(where, json={"price": 1}, headers=key)
        again = await client.patch(where, json={"price": 1}, headers=key)
        assert (done.status_code, again.status_code) == (200, 200)
        assert again.json() == done.json() == (await client.get(where)).json()
