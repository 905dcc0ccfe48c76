"""fastapi-cache2: its decorator around a function, with Redis.

``PickleCoder``, since its JSON comes back as a dict and not as the model. A hit asks for the
value and for what is left of its life, in one transaction. It has nothing against a stampede.
"""

from __future__ import annotations

from fastapi_cache import FastAPICache
from fastapi_cache.backends.redis import RedisBackend
from fastapi_cache.coder import PickleCoder
from fastapi_cache.decorator import cache
from reading import MOST_CALLERS, Product, Reader
from redis import asyncio as redis


def _named(function: object, namespace: str = "", *, args: tuple[str], **rest: object) -> str:
    return f"{namespace}:{args[0]}"


class Subject(Reader):
    async def wire(self) -> None:
        client = redis.from_url(self.settings["valkey"], max_connections=MOST_CALLERS)
        self.opened.push_async_callback(client.close)
        FastAPICache.init(RedisBackend(client), prefix="fastapi-cache")

        @cache(expire=3600, coder=PickleCoder, key_builder=_named)
        async def load(key: str) -> Product:
            return await self.source(key)

        self.reads["redis"] = self.cold["plain"] = load
