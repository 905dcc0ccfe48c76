"""A product straight from PostgreSQL, for the applications that have no library for documents."""

from __future__ import annotations

from uuid import UUID

import asyncpg
from fastapi import HTTPException
from reading import Product

READ = f"SELECT {', '.join(Product.model_fields)} FROM products WHERE id = $1"


async def product_of(pool: asyncpg.Pool, id: UUID) -> Product:
    """The product; 404 where there is none."""
    row = await pool.fetchrow(READ, id)
    if row is None:
        raise HTTPException(404)
    return Product(**row)
