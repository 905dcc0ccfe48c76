"""Serves the four examples, one after another, and shows what their caches do."""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import sys
import time
from typing import Any

import httpx

from forze.testing.servers import ValkeyServer
from forze.testing.serving import client_of


async def basic_usage(client: httpx.AsyncClient, _: Any, __: ValkeyServer) -> None:
    """The client of redis-py in a route."""
    first, second = [(await client.get("/users/1")).json() for _ in range(2)]
    print(f"   {first}\n   {second}")
    await client.put("/users/1", params={"name": "Anne"})
    third = (await client.get("/users/1")).json()
    print(f"   renamed, and its entry deleted: {third}")
    stored = (await client.post("/users/warm")).json()["stored"]
    removed = (await client.delete("/users/cache")).json()["removed"]
    print(f"   {stored} stored by a pipeline, {removed} removed by scan_iter")


async def cache_service(client: httpx.AsyncClient, example: Any, _: ValkeyServer) -> None:
    """CacheService: one load for all who wait."""
    answers = await asyncio.gather(*(client.get("/products/1") for _ in range(50)))
    loads = len(example.loads)
    print(f"   50 requests at once: {len({each.text for each in answers})} answer, {loads} load")
    await client.put("/products/1", params={"price": 35})
    print(f"   after a write: {(await client.get('/products/1')).json()}")
    for language in ("en", "fr"):
        print(f"   {(await client.get('/products/1/label', params={'language': language})).json()}")
    held = (await client.get("/products/1/cache")).json()
    print(f"   cached: {held['cached']}, for about ten minutes: {500 < held['seconds'] < 700}")
    print(f"   {(await client.delete('/products/cache')).json()}")


async def production_patterns(client: httpx.AsyncClient, _: Any, valkey: ValkeyServer) -> None:
    """A Redis that hangs: one request pays, the others do not."""
    print(f"   warm at start: asked = {(await client.get('/quotes/1')).json()['asked']}")
    print(f"   health: {(await client.get('/health/redis')).json()['status']}")
    valkey.pause()
    print("-- Redis is stopped (SIGSTOP): connections stand, nothing is answered")
    times = []
    for number in range(10):
        began = time.perf_counter()
        answer = await client.get(f"/quotes/{number}")
        times.append(time.perf_counter() - began)
        assert answer.status_code == 200
    slow = sum(each > 0.4 for each in times)
    print(f"   10 of 10 answered, {slow} of them after more than 0.4 s")
    visit = await client.post("/visits/1")
    print(f"   what needs Redis: {visit.status_code}, Retry-After {visit.headers['retry-after']}")
    print(f"   health: {(await client.get('/health/redis')).json()['status']}")
    valkey.resume()
    async with asyncio.timeout(20):
        while (await client.get("/health/redis")).status_code != 200:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    print(f"-- Redis goes on (SIGCONT): {(await client.post('/visits/1')).status_code}")


async def full_api_example(client: httpx.AsyncClient, _: Any, __: ValkeyServer) -> None:
    """Three domains, and writes that reach what they make stale."""
    await client.post("/users", json={"name": "Ann", "email": "ann@example.com"})
    for total in (40, 300):
        await client.post("/users/1/orders", params={"total": total})
    paths = (
        "/users/1",
        "/users/1/orders",
        "/users/1/orders?at_least=100",
        "/users/1/orders/summary",
    )
    for _ in range(25):
        for path in paths:
            (await client.get(path)).raise_for_status()
    print(f"   100 reads, {(await client.get('/queries')).json()} queries")
    placed = (await client.post("/users/1/orders", params={"total": 5})).json()
    print(f"   an order more: {placed['lists_invalidated']} lists invalidated")
    print(f"   {(await client.get('/users/1/orders/summary')).json()}")


EXAMPLES = {
    "01_basic_usage": basic_usage,
    "02_cache_service": cache_service,
    "03_production_patterns": production_patterns,
    "04_full_api_example": full_api_example,
}


async def run(valkey: ValkeyServer) -> None:
    """The stories, each on an empty server."""
    for name, story in EXAMPLES.items():
        valkey.ask("FLUSHALL")
        example = importlib.import_module(name)
        print(f"{name}.py", flush=True)
        async with client_of(example.app, log_level="error") as client:
            await story(client, example, valkey)


def main() -> None:
    """On a server that exists only for the run."""
    logging.basicConfig(stream=sys.stdout, format="   logged: %(message)s")
    logging.getLogger("fastapi_rc").setLevel(logging.INFO)
    with ValkeyServer() as valkey:
        os.environ["REDIS_URL"] = valkey.dsn
        asyncio.run(run(valkey))
    print("all torn down")


if __name__ == "__main__":
    main()
