"""FastAPI and nothing of ours: a constant, the ceiling; and reads straight from PostgreSQL."""

from contextlib import asynccontextmanager
from uuid import UUID

import asyncpg
from fastapi import FastAPI, Response
from reading import Product
from rows import product_of


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
    async def product(id: UUID) -> Product:
        return await product_of(pools[0], id)

    return app
