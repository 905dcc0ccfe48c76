"""An ``async def get`` around a dict: the least that an awaited lookup can cost."""

from __future__ import annotations

from reading import Product, Reader, product


class Subject(Reader):
    async def wire(self) -> None:
        kept = {key: product(key) for key in self.ids}

        async def get(key: str) -> Product:
            return kept[key]

        self.reads["process"] = get
