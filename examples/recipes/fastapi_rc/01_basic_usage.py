"""Cache-aside with the Redis client itself: read the cache, else the source, and store it.

``python 01_basic_usage.py`` serves it on port 8000, with Redis at ``REDIS_URL``. Then ask for
``/users/1`` twice.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException

from fastapi_rc import RedisClient, cachemanager

USERS = {"1": {"id": "1", "name": "Ann"}, "2": {"id": "2", "name": "Bob"}}
"""The database of the example."""


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Redis for as long as the application runs; ``init`` does not connect."""
    cachemanager.init(redis_url=os.environ.get("REDIS_URL", "redis://localhost:6379/0"))
    yield
    await cachemanager.close()


app = FastAPI(title="Basic usage", lifespan=lifespan)


@app.get("/users/{user_id}")
async def get_user(user_id: str, redis: RedisClient) -> dict[str, Any]:
    """A user, from the cache for five minutes."""
    cached = await redis.get(f"users:{user_id}")
    if cached:
        return {"user": json.loads(cached), "cached": True}
    user = USERS.get(user_id)
    if user is None:
        raise HTTPException(404, "There is no such user.")
    await redis.set(f"users:{user_id}", json.dumps(user), ex=300)
    return {"user": user, "cached": False}


@app.put("/users/{user_id}")
async def rename_user(user_id: str, name: str, redis: RedisClient) -> dict[str, str]:
    """Write first, then remove what is cached of the old state."""
    USERS[user_id] = {"id": user_id, "name": name}
    await redis.delete(f"users:{user_id}")
    return USERS[user_id]


@app.post("/users/warm")
async def warm(redis: RedisClient) -> dict[str, int]:
    """Every user into the cache, in one round trip."""
    async with redis.pipeline(transaction=False) as pipe:
        for user_id, user in USERS.items():
            pipe.set(f"users:{user_id}", json.dumps(user), ex=300)
        stored = await pipe.execute()
    return {"stored": len(stored)}


@app.delete("/users/cache")
async def forget_all(redis: RedisClient) -> dict[str, int]:
    """Every cached user out of it; SCAN holds nobody up, as KEYS does."""
    removed = 0
    async for key in redis.scan_iter("users:*"):
        removed += await redis.delete(key)
    return {"removed": removed}


if __name__ == "__main__":
    uvicorn.run(app, port=8000)
