"""Serves the application, makes requests, and prints what was asked and answered."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import httpx
from app import build_app

from forze.testing.servers import PostgresServer, ValkeyServer
from forze.testing.serving import client_of

TABLE = """
CREATE TABLE products (
    id uuid PRIMARY KEY,
    rev bigint NOT NULL,
    created_at timestamptz NOT NULL,
    last_update_at timestamptz NOT NULL,
    name text NOT NULL,
    price bigint NOT NULL,
    color text NOT NULL
)
"""


async def run(postgres_dsn: str) -> None:
    """The story."""
    database = await asyncpg.connect(postgres_dsn)
    try:
        await database.execute(TABLE)
        async with served() as client:
            lamp = await create(client)
            await revalidate(client, database, lamp)
            await change(client, lamp)
            await browse(client)
            await refuse(client)
    finally:
        await database.close()


async def create(client: httpx.AsyncClient) -> str:
    """The same request twice, as a client sends it that heard nothing the first time."""
    lamp = {"name": "lamp", "price": 40, "color": "red"}
    key = {"Idempotency-Key": "8e03978e-40d5-43e8-bc93-6894a57f9324"}
    first = await told(client, "POST", "/products", json=lamp, headers=key)
    again = await told(client, "POST", "/products", json=lamp, headers=key)
    assert first.headers["location"] == again.headers["location"]
    return first.headers["location"]


async def revalidate(
    client: httpx.AsyncClient, database: asyncpg.Connection[Any], where: str
) -> None:
    """A client that has the document asks whether it is still that; no query is run for it."""
    tag = (await told(client, "GET", where)).headers["etag"]
    await database.execute("ALTER TABLE products RENAME TO hidden")
    print("-- the table is gone: any query would fail")
    same = await told(client, "GET", where, headers={"If-None-Match": tag})
    assert same.status_code == 304
    await database.execute("ALTER TABLE hidden RENAME TO products")
    print("-- the table is back")


async def change(client: httpx.AsyncClient, where: str) -> None:
    """Two who read the same document change it; the second is told."""
    tag = {"If-Match": (await client.get(where)).headers["etag"]}
    await told(client, "PATCH", where, json={"price": 35}, headers=tag)
    late = await told(client, "PATCH", where, json={"price": 45}, headers=tag)
    assert late.status_code == 412
    await told(client, "PATCH", where, json={"price": 45})


async def browse(client: httpx.AsyncClient) -> None:
    """Filters, sort, pages."""
    for name, price, color in (("desk", 300, "green"), ("chair", 90, "red"), ("vase", 20, "red")):
        body = {"name": name, "price": price, "color": color}
        (await client.post("/products", json=body)).raise_for_status()
    page = await told(client, "GET", "/products?color=red&price__gte=20&sort=-price&limit=2")
    await told(client, "GET", page.links["next"]["url"])


async def refuse(client: httpx.AsyncClient) -> None:
    """What is not understood is refused, and said."""
    await told(client, "GET", "/products?colour=red")
    document = (await client.get("/openapi.json")).json()
    operations = [
        each["operationId"] for path in document["paths"].values() for each in path.values()
    ]
    print(f"-- documented: {', '.join(operations)}")


async def told(client: httpx.AsyncClient, method: str, url: str, **given: Any) -> httpx.Response:
    """Make a request and print it with its answer."""
    answer = await client.request(method, url, **given)
    sent = {**given.get("headers", {}), **given.get("json", {})}
    path, _, cursor = url.partition("cursor=")
    shown = " ".join(f"{name}={value}" for name, value in sent.items())
    print(f"{method} {path}{'cursor=...' if cursor else ''} {shown}".rstrip())
    print(f"    {answer.status_code} {said(answer)}".rstrip(), flush=True)
    return answer


def said(answer: httpx.Response) -> str:
    """An answer in a line."""
    if not answer.content:
        return ""
    body = answer.json()
    if answer.is_error:
        wrong = [f"{each['name']}: {each['detail']}" for each in body.get("errors", ())]
        return " ".join([body["title"], *wrong])
    if "items" in body:
        more = ", and more" if body["next_cursor"] else ", and no more"
        return ", ".join(f"{each['name']} {each['price']}" for each in body["items"]) + more
    return f"{body['name']} {body['price']} rev={body['rev']} ETag={answer.headers['etag']}"


@asynccontextmanager
async def served() -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application, which is served on a free port for as long."""
    async with client_of(build_app()) as client:
        print(f"-- serving on {client.base_url}".rstrip("/"))
        yield client


def main() -> None:
    """On servers that exist only for the run."""
    with PostgresServer() as postgres, ValkeyServer() as valkey:
        os.environ |= {"POSTGRES_DSN": postgres.dsn, "REDIS_DSN": valkey.dsn}
        asyncio.run(run(postgres.dsn))
    print("all torn down")


if __name__ == "__main__":
    main()
