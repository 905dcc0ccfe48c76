"""Serves two replicas over one cache, makes requests, and prints what was asked and answered."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
from app import build_app
from fastapi import FastAPI

from forze.testing.servers import ValkeyServer
from forze.testing.serving import client_of


async def run() -> None:
    """The story."""
    apps = [build_app(), build_app()]
    async with AsyncExitStack() as stack:
        one, two = [await stack.enter_async_context(served(each)) for each in apps]
        answers = await asyncio.gather(*(each.get("/quotes/1") for each in (one, two) * 50))
        computed = sum(each.state.computed for each in apps)
        print(f"-- 100 requests at once to two replicas: computed {computed} time(s)", flush=True)
        assert {each.text for each in answers} == {'{"product":1,"price":40}'}
        tag = (await told(one, "one", "GET", "/quotes/1")).headers["etag"]
        same = {"If-None-Match": tag}
        await told(two, "two", "GET", "/quotes/1", headers=same)
        await told(two, "two", "PUT", "/quotes/1?price=35")
        await told(one, "one", "GET", "/quotes/1", headers=same)
        for who in ("ann", "bob", "ann"):
            await told(one, "one", "GET", "/basket", headers={"X-User": who})


async def told(client: httpx.AsyncClient, replica: str, method: str, url: str, **given: Any) -> Any:
    """Make a request and print it with its answer."""
    answer = await client.request(method, url, **given)
    sent = " ".join(f"{name}: {value}" for name, value in given.get("headers", {}).items())
    print(f"{replica}: {method} {url} {sent}".rstrip())
    kept = [answer.headers.get(name, "") for name in ("cache-control", "cache-status")]
    print(f"    {answer.status_code} {answer.text} {' | '.join(filter(None, kept))}", flush=True)
    return answer


@asynccontextmanager
async def served(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a replica, which is served on a free port for as long."""
    async with client_of(app) as client:
        print(f"-- serving on {client.base_url}".rstrip("/"), flush=True)
        yield client


def main() -> None:
    """On a server that exists only for the run."""
    with ValkeyServer() as valkey:
        os.environ["REDIS_DSN"] = valkey.dsn
        asyncio.run(run())
    print("all torn down")


if __name__ == "__main__":
    main()
