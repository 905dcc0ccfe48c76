"""theine: its decorator for async functions, in memory, with the key function that its
documentation recommends; without locks, which one event loop does not need."""

from __future__ import annotations

from datetime import timedelta

from reading import Product, Reader
from theine import Memoize


class Subject(Reader):
    async def wire(self) -> None:
        @Memoize(2 * len(self.ids), timedelta(hours=1), nolock=True)
        async def load(key: str) -> Product:
            return await self.source(key)

        @load.key
        def _(key: str) -> str:
            return key

        self.reads["process"] = load
