"""CacheService: cache-aside in one call, typed, with the load made once however many wait.

``python 02_cache_service.py`` serves it on port 8000, with Redis at ``REDIS_URL``. Then ask for
``/products`` and ``/products/1``.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import uvicorn
from fastapi import Depends, FastAPI, HTTPException
from pydantic import BaseModel

from fastapi_rc import CacheService, CacheServiceDep, RedisClient, cachemanager


class Product(BaseModel):
    """What is sold."""

    id: int
    name: str
    price: int


PRODUCTS = {1: Product(id=1, name="lamp", price=40), 2: Product(id=2, name="desk", price=300)}
"""The database of the example."""
loads: list[str] = []
"""What was asked of it."""


async def load_product(product_id: int) -> Product | None:
    """One query, and slow."""
    loads.append(f"product {product_id}")
    await asyncio.sleep(0.05)
    return PRODUCTS.get(product_id)


def load_prices() -> dict[str, int]:
    """A factory may be an ordinary function, too."""
    loads.append("prices")
    return {each.name: each.price for each in PRODUCTS.values()}


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Redis for as long as the application runs."""
    cachemanager.init(redis_url=os.environ.get("REDIS_URL", "redis://localhost:6379/0"))
    yield
    await cachemanager.close()


async def get_product_cache(redis: RedisClient) -> CacheService[Product]:
    """The cache of one domain: its namespace, its model, its lifetime."""
    return CacheService[Product](
        redis,
        namespace="products",
        model=Product,
        default_ttl=600,
        use_jitter=True,  # what was stored at once does not expire at once
        prefix="shop",
        version="v1",
    )


ProductCache = Annotated[CacheService[Product], Depends(get_product_cache)]

app = FastAPI(title="CacheService", lifespan=lifespan)


@app.get("/prices")
async def prices(cache: CacheServiceDep) -> Any:
    """Any JSON is cached, also without a model."""
    return await cache.get_or_set(identifier="prices", factory=load_prices, ttl=60)


@app.get("/products/{product_id}")
async def get_product(product_id: int, cache: ProductCache) -> Product:
    """A hundred requests at once for what is not cached make one query."""
    product = await cache.get_or_set(product_id, lambda: load_product(product_id))
    if product is None:
        raise HTTPException(404, "There is no such product.")
    return product


@app.get("/products/{product_id}/cache")
async def look(product_id: int, cache: ProductCache) -> dict[str, Any]:
    """What the cache holds of it, and for how long yet."""
    return {"cached": await cache.exists(product_id), "seconds": await cache.get_ttl(product_id)}


@app.get("/products/{product_id}/label")
async def label(product_id: int, cache: CacheServiceDep, language: str = "en") -> Any:
    """``params`` tell the variants of one entry apart."""
    return await cache.get_or_set(
        f"label:{product_id}",
        lambda: f"{PRODUCTS[product_id].name} ({language})",
        params={"language": language},
    )


@app.put("/products/{product_id}")
async def reprice(product_id: int, price: int, cache: ProductCache) -> Product:
    """Write first, then remove the entry: the next read loads and stores the new state."""
    PRODUCTS[product_id] = PRODUCTS[product_id].model_copy(update={"price": price})
    await cache.delete(product_id)
    return PRODUCTS[product_id]


@app.delete("/products/cache")
async def forget_all(cache: ProductCache) -> dict[str, int]:
    """Every entry of the namespace."""
    return {"removed": await cache.invalidate_pattern()}


if __name__ == "__main__":
    uvicorn.run(app, port=8000)
