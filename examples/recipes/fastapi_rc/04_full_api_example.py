"""A whole API over three domains, each with a cache of its own, and writes that invalidate.

``python 04_full_api_example.py`` serves it on port 8000, with Redis at ``REDIS_URL``; the
documentation is at ``/docs``.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import uvicorn
from fastapi import APIRouter, Depends, FastAPI, HTTPException
from pydantic import BaseModel, Field

from fastapi_rc import CacheService, RedisClient, cachemanager

MINUTE = 60


class UserWrite(BaseModel):
    """What a caller may say of a user."""

    name: str = Field(min_length=1)
    email: str = Field(pattern=r".+@.+")


class User(UserWrite):
    """A user."""

    id: int


class Order(BaseModel):
    """An order of a user."""

    id: int
    user_id: int
    total: int = Field(gt=0)


class Summary(BaseModel):
    """What is computed of a user's orders."""

    orders: int
    spent: int


class Database:
    """Two tables in memory, and a count of what was asked of them."""

    def __init__(self) -> None:
        self.users: dict[int, User] = {}
        self.orders: list[Order] = []
        self.queries = 0

    async def user(self, user_id: int) -> User | None:
        """One row."""
        self.queries += 1
        return self.users.get(user_id)

    async def orders_of(self, user_id: int, at_least: int) -> list[Order]:
        """The rows of a user."""
        self.queries += 1
        return [each for each in self.orders if each.user_id == user_id and each.total >= at_least]

    async def summary_of(self, user_id: int) -> Summary:
        """An aggregate."""
        self.queries += 1
        totals = [each.total for each in self.orders if each.user_id == user_id]
        return Summary(orders=len(totals), spent=sum(totals))


db = Database()


# -- caches: one for each domain -------------------------------------------------


async def get_user_cache(redis: RedisClient) -> CacheService[User]:
    """Users change seldom."""
    return CacheService[User](redis, "users", model=User, default_ttl=30 * MINUTE, prefix="shop")


async def get_order_cache(redis: RedisClient) -> CacheService[list[Order]]:
    """Lists of models are cached as they are; the filter tells them apart."""
    return CacheService[list[Order]](
        redis, "orders", model=list[Order], default_ttl=MINUTE, prefix="shop"
    )


async def get_summary_cache(redis: RedisClient) -> CacheService[Summary]:
    """Expensive, and a little age does no harm."""
    return CacheService[Summary](
        redis, "summaries", model=Summary, default_ttl=10 * MINUTE, use_jitter=True, prefix="shop"
    )


UserCache = Annotated[CacheService[User], Depends(get_user_cache)]
OrderCache = Annotated[CacheService[list[Order]], Depends(get_order_cache)]
SummaryCache = Annotated[CacheService[Summary], Depends(get_summary_cache)]

# -- users -----------------------------------------------------------------------

users = APIRouter(prefix="/users", tags=["users"])


@users.post("", status_code=201)
async def create_user(user: UserWrite) -> User:
    """Nothing is cached yet: the first read does that."""
    created = User(id=len(db.users) + 1, **user.model_dump())
    db.users[created.id] = created
    return created


@users.get("/{user_id}")
async def get_user(user_id: int, cache: UserCache) -> User:
    """A user that does not exist is remembered as such, too, and not asked for again."""
    user = await cache.get_or_set(user_id, lambda: db.user(user_id))
    if user is None:
        raise HTTPException(404, "There is no such user.")
    return user


@users.put("/{user_id}")
async def replace_user(user_id: int, user: UserWrite, cache: UserCache) -> User:
    """Write, then invalidate."""
    if user_id not in db.users:
        raise HTTPException(404, "There is no such user.")
    db.users[user_id] = User(id=user_id, **user.model_dump())
    await cache.delete(user_id)
    return db.users[user_id]


# -- orders ----------------------------------------------------------------------

orders = APIRouter(prefix="/users/{user_id}/orders", tags=["orders"])


@orders.get("")
async def list_orders(user_id: int, cache: OrderCache, at_least: int = 0) -> list[Order]:
    """Each filter is an entry of its own under the user's identifier."""
    return await cache.get_or_set(
        user_id, lambda: db.orders_of(user_id, at_least), params={"at_least": at_least}
    )


@orders.post("", status_code=201)
async def place_order(
    user_id: int, total: int, cache: OrderCache, summaries: SummaryCache
) -> dict[str, Any]:
    """One write touches two domains: every variant of the list, and the summary."""
    order = Order(id=len(db.orders) + 1, user_id=user_id, total=total)
    db.orders.append(order)
    variants = await cache.invalidate_pattern(f"{user_id}:*")
    await summaries.delete(user_id)
    return {"order": order, "lists_invalidated": variants}


@orders.get("/summary")
async def summary(user_id: int, cache: SummaryCache) -> Summary:
    """Computed once in ten minutes, or after an order."""
    return await cache.get_or_set(user_id, lambda: db.summary_of(user_id))


# -- the application ---------------------------------------------------------------


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Redis for as long as the application runs."""
    cachemanager.init(redis_url=os.environ.get("REDIS_URL", "redis://localhost:6379/0"))
    yield
    await cachemanager.close()


app = FastAPI(title="A shop", lifespan=lifespan)
app.include_router(users)
app.include_router(orders)


@app.get("/health/redis", tags=["health"])
async def redis_health() -> dict[str, str]:
    """Whether the cache can be used; the API works without it."""
    if not cachemanager.is_available:
        return {"status": "unavailable"}
    return {"status": "healthy" if await cachemanager.ping() else "unhealthy"}


@app.get("/queries", tags=["health"])
async def queries() -> int:
    """How often the database was asked, so that the cache can be seen at work."""
    return db.queries


if __name__ == "__main__":
    uvicorn.run(app, port=8000)
