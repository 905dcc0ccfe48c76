"""aiocache: its decorator, with Redis or in memory.

Redis: models are pickled, since its JSON takes plain dicts only. ``guarded`` is its
``cached_stampede``, whose waiters wait for their own process only. Entries live until their
end; there is no invalidation beyond deleting a key.
"""

from __future__ import annotations

from aiocache import Cache, cached, cached_stampede
from aiocache.serializers import PickleSerializer
from reading import MOST_CALLERS, Product, Reader, place


def _named(function: object, key: str) -> str:
    return f"aiocache:{key}"


class Subject(Reader):
    async def wire(self) -> None:
        host, port = place(self.settings["valkey"])
        redis = {
            "cache": Cache.REDIS,
            "endpoint": host,
            "port": port,
            "pool_max_size": MOST_CALLERS,
            "serializer": PickleSerializer(),
            "ttl": 3600,
            "key_builder": _named,
        }

        async def load(key: str) -> Product:
            return await self.source(key)

        self.reads["redis"] = cached(**redis)(load)
        self.reads["process"] = cached(cache=Cache.MEMORY, ttl=3600, key_builder=_named)(load)
        self.cold["guarded"] = cached_stampede(lease=10, **redis)(load)
        self.cold["plain"] = cached(**redis)(load)
        for each in (self.reads["redis"], *self.cold.values()):
            self.opened.push_async_callback(each.cache.close)
