"""FastAPI and nothing of ours: a constant, the ceiling; and reads straight from PostgreSQL."""

from contextlib import asynccontextmanager
from datetime import datetime
from uuid import UUID

import asyncpg
from fastapi import FastAPI, HTTPException, Response
from pydantic import BaseModel

READ = (
    "SELECT id, rev, created_at, last_update_at, name, price, description "
    "FROM products WHERE id = $1"
)


class ProductRead(BaseModel):
    id: UUID
    rev: int
    created_at: datetime
    last_update_at: datetime
    name: str
    price: int
    description: str


def make(settings):
    return constant() if settings["variant"] == "constant" else uncached(settings["postgres"])


def constant():
    """The least that a route of FastAPI does: a path parameter, and bytes that are there."""
    body = b'{"name":"%b"}' % (b"x" * 446)  # as large as a product
    app = FastAPI()

    @app.get("/products/{id}")
    async def product(id: UUID) -> Response:
        return Response(body, media_type="application/json")

    return app


def uncached(dsn):
    pools = []

    @asynccontextmanager
    async def connected(app):
        async with asyncpg.create_pool(dsn, min_size=1, max_size=15) as pool:
            pools.append(pool)
            yield

    app = FastAPI(lifespan=connected)

    @app.get("/products/{id}")
    async def product(id: UUID) -> ProductRead:
        row = await pools[0].fetchrow(READ, id)
        if row is None:
            raise HTTPException(404)
        return ProductRead(**row)

    return app
