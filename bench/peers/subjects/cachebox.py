"""cachebox: its decorator for async functions around an LRU cache written in Rust."""

from __future__ import annotations

import cachebox
from reading import Product, Reader


class Subject(Reader):
    async def wire(self) -> None:
        @cachebox.cached(cachebox.LRUCache(2 * len(self.ids)))
        async def load(key: str) -> Product:
            return await self.source(key)

        self.reads["process"] = load
