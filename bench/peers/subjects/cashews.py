"""cashews: its decorator, with Redis, in memory, or with Redis and its client-side cache.

Models are pickled. ``guarded`` is ``lock=True``, which its documentation recommends against a
stampede; without it the callers of one process share a run all the same, hits included.
``client-side`` keeps entries in the process and hears from the server when one changes.
"""

from __future__ import annotations

from cashews import Cache
from reading import MOST_CALLERS, Product, Reader


class Subject(Reader):
    async def wire(self) -> None:
        redis = {"max_connections": MOST_CALLERS, "suppress": False, "socket_timeout": 30}
        caches = {
            "redis": (self.settings["valkey"], redis),
            "process": ("mem://", {"size": 2 * len(self.ids)}),
            "client-side": (
                self.settings["valkey"],
                {**redis, "client_side": True, "client_side_prefix": "cashews-near:"},
            ),
        }
        for what, (dsn, options) in caches.items():
            cache = Cache()
            cache.setup(dsn, **options)
            await cache.init()
            self.opened.push_async_callback(cache.close)
            self.reads[what] = cache(ttl="1h", key="cashews:{key}")(self._load)
            if what == "redis":
                self.cold["guarded"] = cache(ttl="1h", key="cashews:{key}", lock=True)(self._load)

    async def _load(self, key: str) -> Product:
        return await self.source(key)
