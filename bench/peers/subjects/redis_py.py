"""redis-py: what one writes without a library, GET and the very decode our cache does.

A pool as large as the callers, hiredis. No invalidation, no protection of the source.
"""

from __future__ import annotations

import redis.asyncio
from reading import MOST_CALLERS, Product, Reader, body, decode


class Subject(Reader):
    async def wire(self) -> None:
        pool = redis.asyncio.ConnectionPool.from_url(
            self.settings["valkey"], max_connections=MOST_CALLERS
        )
        client = await self.opened.enter_async_context(redis.asyncio.Redis.from_pool(pool))
        for key in self.ids:
            await client.set(f"redis-py:{key}", body(key))

        async def get(key: str) -> Product:
            return decode(await client.get(f"redis-py:{key}"))

        self.reads["redis"] = get
