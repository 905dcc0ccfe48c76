"""What every subject of the read parts is made of: what it reads, in which way, and how a cold
key is read. Importable in every environment: the standard library and pydantic.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any, Self
from urllib.parse import urlsplit
from uuid import UUID

from pydantic import BaseModel, ConfigDict
from work import Read, at_once, work, zipf

SEQUENCE = 100_003
"""How many keys are drawn before they repeat; a prime, so that callers do not march in step."""

MOST_CALLERS = 256
"""Pools are as large, where a library has one."""

DESCRIPTION = 280
"""Characters of a product's, here and in ``bench.workload``."""

WARM_UP = 0.1
"""Of a visit's time, before what counts."""


class Product(BaseModel):
    """The read model of ``bench.workload``, for those that have no document models."""

    model_config = ConfigDict(frozen=True)

    id: UUID
    rev: int
    created_at: datetime
    last_update_at: datetime
    name: str
    price: int
    description: str


decode = Product.__pydantic_validator__.validate_json
"""The very decode of our cache, for libraries that hand out bytes."""


def product(key: str) -> Product:
    """A product of the size of those in PostgreSQL. ``key``: the text of a UUID, or any other."""
    try:
        pk = UUID(key)
    except ValueError:
        pk = UUID(int=0)
    now = datetime.now(UTC)
    number = pk.int % 1_000
    return Product(
        id=pk,
        rev=1,
        created_at=now,
        last_update_at=now,
        name=f"Product {number}",
        price=number,
        description="x" * DESCRIPTION,
    )


def body(key: str) -> bytes:
    """The JSON of :func:`product`, as our cache stores it."""
    return product(key).__pydantic_serializer__.to_json(product(key))


def place(dsn: str) -> tuple[str, int]:
    """Host and port of ``redis://host:port/0``, for libraries that take them apart."""
    parts = urlsplit(dsn)
    return parts.hostname or "127.0.0.1", parts.port or 6379


class Reader:
    """A library at work. Subclasses fill ``reads``, by tier, and ``cold`` if they read through.

    ``source`` is what a read-through function loads from; it takes ``source_ms`` and counts.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.ids: list[Any] = settings["ids"]
        self.reads: dict[str, Read] = {}
        self.cold: dict[str, Read] = {}
        self.opened = AsyncExitStack()
        self.loads = 0
        self.source_ms = 0.0
        self._counted = 0
        self._keys: list[Any] = []
        self._filled: set[str] = set()

    @classmethod
    async def open(cls, settings: dict[str, Any]) -> Self:
        """Connected and ready; nothing is cached yet."""
        subject = cls(settings)
        await subject.wire()
        return subject

    async def wire(self) -> None:
        """Connect, and fill ``reads`` and ``cold``."""
        raise NotImplementedError

    async def close(self) -> None:
        """Disconnect."""
        await self.opened.aclose()

    async def source(self, key: str) -> Product:
        """What a cached function computes."""
        self.loads += 1
        if self.source_ms:
            await asyncio.sleep(self.source_ms / 1e3)
        return product(key)

    async def fill(self, what: str) -> None:
        """Read every document twice, so that what follows are hits; the second answer is
        checked to be that document, whole."""
        read = self._of(self.reads, what)
        if what not in self._filled:
            for key in self.ids:
                await read(key)
                found = await read(key)
                if str(found.id) != str(key) or len(found.description) != DESCRIPTION:
                    raise ValueError(f"asked for {key}, it answers {found!r}")
            self._filled.add(what)

    async def missed(self, what: str) -> int:
        """How many reads of the tier ``what`` went to the source since the call before."""
        since, self._counted = self._counted, self.loads
        return self.loads - since

    async def do_read(self, what: str, callers: int, seconds: float) -> dict[str, float]:
        """``callers`` read all hits of the tier ``what`` for ``seconds``; raises if one was not.

        :func:`work.work`'s figures, and ``asked``: the reads of the warm-up too.
        """
        await self.fill(what)
        read, self._keys = self.reads[what], self._keys or zipf(self.ids, SEQUENCE)
        await self.missed(what)
        warm = await work(read, self._keys, callers, seconds * WARM_UP)
        found = await work(read, self._keys, callers, seconds)
        if missed := await self.missed(what):
            raise RuntimeError(f"{missed} or more of the reads were no hits")
        return {**found, "asked": warm["reads"] + found["reads"]}

    async def do_cold(
        self, key: int, callers: int, source_ms: float, what: str = "guarded"
    ) -> dict[str, float]:
        """``callers`` read one key at once that is in no cache.

        ``key`` is a number below 1,000 that no trial before had. ``what`` is ``guarded``, the way
        that the library's documentation recommends against a stampede, or ``plain``, its usual
        one. ``loads`` is how often the source was run by this process, ``ms`` how long it took
        until all were answered.
        """
        read = self._of(self.cold, what)
        self.loads, self.source_ms = 0, source_ms
        try:
            took = await at_once(read, f"cold {key}", callers)
        finally:
            self.source_ms = 0.0
        return {"loads": self.loads, "ms": took}

    def _of(self, reads: dict[str, Read], what: str) -> Read:
        if what not in reads:
            has = ", ".join(reads) or "nothing of the kind"
            raise LookupError(f"there is no {what!r} here, but {has}")
        return reads[what]
