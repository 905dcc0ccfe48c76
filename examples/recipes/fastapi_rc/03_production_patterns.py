"""What production asks of a cache: outages, stampedes, warm starts, schema changes, health.

``python 03_production_patterns.py`` serves it on port 8000, with Redis at ``REDIS_URL``. Then
stop Redis, and ask for ``/quotes/1`` again: it is answered from the source, and only the first
request is slower by what ``budget`` allows.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import uvicorn
from fastapi import Depends, FastAPI, Response
from pydantic import BaseModel

from fastapi_rc import CacheManager, CacheService, RedisClient, cachemanager, get_ttl_with_jitter

SCHEMA = "v2"
"""Raise it with the shape of what is cached: entries of the old shape are never read again."""

sessions = CacheManager()
"""A second server (here: a second database) with a pool and a circuit of its own."""


class Quote(BaseModel):
    """What the slow source gives."""

    id: str
    text: str
    asked: int


asked: list[str] = []
"""What was fetched."""


async def fetch_quote(quote_id: str) -> Quote:
    """The slow source."""
    asked.append(quote_id)
    number = len(asked)
    await asyncio.sleep(0.05)
    return Quote(id=quote_id, text=f"quote {quote_id}", asked=number)


def quotes_on(redis: Any) -> CacheService[Quote]:
    """The cache of quotes, for routes and for what runs outside of them."""
    return CacheService[Quote](
        redis,
        namespace="quotes",
        model=Quote,
        default_ttl=300,
        use_jitter=True,
        prefix="app",
        version=SCHEMA,
    )


async def get_quotes(redis: RedisClient) -> CacheService[Quote]:
    """The same as a dependency."""
    return quotes_on(redis)


Quotes = Annotated[CacheService[Quote], Depends(get_quotes)]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open, warm what is asked for most, close. A Redis that is away stops nothing of it."""
    url = os.environ.get("REDIS_URL", "redis://localhost:6379/0")
    cachemanager.init(redis_url=url, max_connections=50, budget=0.5)
    sessions.init(redis_url=url, max_connections=10, budget=0.25)
    quotes = quotes_on(cachemanager.client)
    for quote_id in ("1", "2"):
        ttl = get_ttl_with_jitter(base_ttl=300, jitter_percent=0.1)
        await quotes.set(quote_id, await fetch_quote(quote_id), ttl=ttl)
    yield
    await sessions.close()
    await cachemanager.close()


app = FastAPI(title="Production patterns", lifespan=lifespan)


@app.get("/quotes/{quote_id}")
async def quote(quote_id: str, quotes: Quotes) -> Quote:
    """One load for a hundred requests at once; in an outage, loads without a cache."""
    return await quotes.get_or_set(quote_id, lambda: fetch_quote(quote_id))


@app.post("/visits/{user_id}")
async def visit(user_id: str, redis: RedisClient) -> dict[str, int]:
    """What cannot do without Redis answers 503 in an outage, by itself."""
    return {"visits": await redis.incr(f"visits:{user_id}")}


@app.post("/sessions/{user_id}")
async def begin_session(user_id: str) -> dict[str, bool]:
    """The other manager's client; slow sessions never take connections from the cache."""
    return {"stored": bool(await sessions.client.set(f"session:{user_id}", "1", ex=1800))}


@app.get("/health/redis")
async def redis_health(response: Response) -> dict[str, str]:
    """For people and dashboards; a load balancer should not take a replica out for its cache."""
    if cachemanager.is_available and await cachemanager.ping():
        return {"status": "healthy"}
    response.status_code = 503
    return {"status": "unavailable"}


if __name__ == "__main__":
    uvicorn.run(app, port=8000)
