"""The last minute of a runtime's reads, sampled once a second from when somebody first looks.

It goes on until the runtime's scope is left, so that whoever opens the page the next time finds a
minute there already. A sample is a few integers per document kind and function.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from itertools import pairwise
from time import monotonic, time
from typing import Any, Final, Literal, NamedTuple, TypeAlias
from weakref import WeakKeyDictionary

from forze.application.contracts.cache import CacheSpec
from forze.application.execution import ExecutionContext
from forze.application.integrations.document.coordinator import Coordinator
from forze.application.integrations.document.reading import Reading, reads_by_tier
from forze_fastapi.console.shapes import Reads, Series

SECONDS: Final = 60
_PERIOD: Final = 1.0


Name: TypeAlias = tuple[Literal["document", "function"], str]
"""A document kind or a function, by its name."""


class Cached(NamedTuple):
    """Something that is read through a cache."""

    name: Name
    spec: CacheSpec
    coordinator: Coordinator[Any, Any]
    tenant_aware: bool

    def reading(self) -> Reading:
        """How it stands."""
        return Reading.of(self.spec, self.coordinator)


def cached_in(ctx: ExecutionContext) -> list[Cached]:
    """All that is read through a cache and has been used, or declared, so far."""
    documents = [
        Cached(("document", each.spec.name), each.spec.cache, each.coordinator,
               each.store.relations.tenant_aware)
        for each in ctx.document.kinds()
        if each.coordinator is not None and each.spec.cache is not None
    ]  # fmt: skip
    functions = [
        Cached(("function", each.function.name), each.function.cache, each.coordinator,
               each.tenant_aware)
        for each in ctx.functions.bound()
    ]  # fmt: skip
    return documents + functions


class Sample(NamedTuple):
    """Reads so far."""

    at: float
    reads: Mapping[Name, Reads]


class History:
    """The samples of one runtime's scope."""

    def __init__(self, ctx: ExecutionContext) -> None:
        self.began = time()
        self._samples: deque[Sample] = deque(maxlen=SECONDS + 1)
        self._take(ctx)
        ctx.spawn(self._go_on(ctx), name="forze-console-history", wait=False)

    def series(self, name: Name) -> Series:
        """Reads per second."""
        points = [
            (_rate(before, after, name, ("l1",)), _rate(before, after, name, ("cache", "shared")),
             _rate(before, after, name, ("source",)))
            for before, after in pairwise(self._samples)
        ]  # fmt: skip
        return Series(
            l1=[each[0] for each in points],
            cache=[each[1] for each in points],
            source=[each[2] for each in points],
        )

    def minute(self, name: Name, now: Reads) -> tuple[float, Reads]:
        """How long ago the oldest sample was taken, and the reads since then."""
        oldest = self._samples[0]
        return monotonic() - oldest.at, _since(now, oldest.reads.get(name))

    async def _go_on(self, ctx: ExecutionContext) -> None:
        while True:
            await asyncio.sleep(_PERIOD)
            self._take(ctx)

    def _take(self, ctx: ExecutionContext) -> None:
        reads = {each.name: reads_of(each.reading()) for each in cached_in(ctx)}
        self._samples.append(Sample(monotonic(), reads))


_histories: WeakKeyDictionary[ExecutionContext, History] = WeakKeyDictionary()


def history_of(ctx: ExecutionContext) -> History:
    """The history of a scope; it begins when it is first asked for."""
    history = _histories.get(ctx)
    if history is None:
        history = _histories[ctx] = History(ctx)
    return history


def reads_of(reading: Reading) -> Reads:
    """The reads so far."""
    found = reads_by_tier(reading)
    return Reads(
        l1=None if reading.l1 is None else int(found["l1"]),
        cache=int(found["cache"]),
        shared=int(found["shared"]),
        source=int(found["source"]),
    )


def _since(now: Reads, then: Reads | None) -> Reads:
    if then is None:
        return now
    return Reads(
        l1=None if now.l1 is None else now.l1 - (then.l1 or 0),
        cache=now.cache - then.cache,
        shared=now.shared - then.shared,
        source=now.source - then.source,
    )


def _rate(before: Sample, after: Sample, name: Name, tiers: tuple[str, ...]) -> float:
    now = after.reads.get(name)
    if now is None:
        return 0.0
    passed = _since(now, before.reads.get(name))
    number = sum(getattr(passed, tier) or 0 for tier in tiers)
    return round(number / max(after.at - before.at, 0.001), 1)
