"""cashews' function that expires again and again while it is called; see ``hot_key.py``.

``plain`` is ``@cache`` with ``lock=True``, its protection against stampedes; ``background`` is
``@cache.early``, with the share of the lifetime that its documentation uses.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

import asyncpg
from cashews import Cache
from pydantic import BaseModel
from steady import steady

EARLY_SHARE = 0.7
CONNECTIONS = 15  # as forze has


class Product(BaseModel):
    id: UUID
    rev: int
    name: str
    price: int
    description: str


class Subject:
    """The same function under both decorators."""

    def __init__(self, cache: Any, pool: Any, reads: dict[str, Any]) -> None:
        self._cache = cache
        self._pool = pool
        self._reads = reads

    @classmethod
    async def open(cls, settings: dict[str, Any]) -> Subject:
        """``ttl_seconds`` is how long an entry lives."""
        ttl = settings["ttl_seconds"]
        pool = await asyncpg.create_pool(settings["postgres"], min_size=1, max_size=CONNECTIONS)
        cache = Cache()
        cache.setup(settings["valkey"], max_connections=1_000)
        await cache.init()

        async def load(key: str) -> bytes:
            row = await pool.fetchrow("SELECT * FROM hot_products WHERE id = $1", UUID(key))
            return Product.model_validate(dict(row)).model_dump_json().encode()

        async def plain(key: str) -> bytes:
            return await load(key)

        async def background(key: str) -> bytes:
            return await load(key)

        return cls(
            cache,
            pool,
            {
                "plain": cache(ttl=ttl, key="hot:{key}", lock=True)(plain),
                "background": cache.early(ttl=ttl, early_ttl=EARLY_SHARE * ttl, key="hot:{key}")(
                    background
                ),
            },
        )

    async def close(self) -> None:
        """Disconnect."""
        await self._cache.close()
        await self._pool.close()

    async def do_read(self, how: str, key: str) -> None:
        """Read once."""
        await self._read(how, key)

    async def do_steady(self, how: str, key: str, **load: Any) -> dict[str, int]:
        """Read as ``steady.steady`` does."""
        return await steady(lambda: self._read(how, key), **load)

    async def _read(self, how: str, key: str) -> Product:
        return Product.model_validate_json(await self._reads[how](key))
