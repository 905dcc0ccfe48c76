"""coredis: a few multiplexed connections; GET and the very decode our cache does."""

from __future__ import annotations

import coredis
from reading import Product, Reader, body, decode


class Subject(Reader):
    async def wire(self) -> None:
        client = coredis.Redis.from_url(self.settings["valkey"])
        await self.opened.enter_async_context(client)
        for key in self.ids:
            await client.set(f"coredis:{key}", body(key))

        async def get(key: str) -> Product:
            return decode(await client.get(f"coredis:{key}"))

        self.reads["redis"] = get
