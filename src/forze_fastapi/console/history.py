"""The last minute of a runtime's reads, sampled once a second from when somebody first looks.

It goes on until the runtime's scope is left, so that whoever opens the page the next time finds a
minute there already. A sample is a few integers per document kind and function.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from time import monotonic, time
from typing import Any, Final, Literal, NamedTuple, TypeAlias
from weakref import WeakKeyDictionary

from forze.application.contracts.cache import CacheSpec, PointerCache
from forze.application.contracts.document import DocumentStore
from forze.application.execution import ExecutionContext
from forze.application.integrations.document.coordinator import Coordinator
from forze.application.integrations.document.reading import Reading, Values, reads_by_tier
from forze_fastapi.console.shapes import Series

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
               _of_tenants(each.store, each.coordinator.outlet.pointers))
        for each in ctx.document.kinds()
        if each.coordinator is not None and each.spec.cache is not None
    ]  # fmt: skip
    functions = [
        Cached(("function", each.function.name), each.function.cache, each.coordinator,
               each.tenant_aware)
        for each in ctx.functions.bound()
    ]  # fmt: skip
    return documents + functions


def _of_tenants(store: DocumentStore[Any], pointers: PointerCache) -> bool:
    """Whether it takes a tenant to tell where a document is, or which."""
    return store.relations.tenant_aware or pointers.tenant_aware or not pointers.one_namespace


class Sample(NamedTuple):
    """Reads so far, by what answered them, and a second's rates up to here."""

    at: float
    reads: Mapping[Name, Values]
    rates: Mapping[Name, tuple[float, float, float]]


class History:
    """The samples of one runtime's scope."""

    def __init__(self, ctx: ExecutionContext) -> None:
        self.began = time()
        self._samples: deque[Sample] = deque(maxlen=SECONDS + 1)
        self._take(ctx)
        ctx.spawn(self._go_on(ctx), name="forze-console-history", wait=False)

    def series(self, name: Name) -> Series:
        """Reads per second."""
        points = [each.rates.get(name, (0.0, 0.0, 0.0)) for each in self._samples]
        l1, cache, source = zip(*points, strict=True)
        return Series(l1=l1[1:], cache=cache[1:], source=source[1:])

    def minute(self, name: Name, now: Values) -> tuple[float, Values]:
        """How long ago the oldest sample was taken, and the reads since then."""
        oldest = self._samples[0]
        return monotonic() - oldest.at, _since(now, oldest.reads.get(name, {}))

    async def _go_on(self, ctx: ExecutionContext) -> None:
        while True:
            await asyncio.sleep(_PERIOD)
            self._take(ctx)

    def _take(self, ctx: ExecutionContext) -> None:
        now = monotonic()
        reads = {each.name: reads_by_tier(each.reading()) for each in cached_in(ctx)}
        before = self._samples[-1] if self._samples else Sample(now, {}, {})
        passed = max(now - before.at, 0.001)
        rates = {
            name: _rates(_since(each, before.reads.get(name, {})), passed)
            for name, each in reads.items()
        }
        self._samples.append(Sample(now, reads, rates))


_histories: WeakKeyDictionary[ExecutionContext, History] = WeakKeyDictionary()


def history_of(ctx: ExecutionContext) -> History:
    """The history of a scope; it begins when it is first asked for."""
    history = _histories.get(ctx)
    if history is None:
        history = _histories[ctx] = History(ctx)
    return history


def _since(now: Values, then: Values) -> Values:
    return {tier: number - then.get(tier, 0) for tier, number in now.items()}


def _rates(reads: Values, seconds: float) -> tuple[float, float, float]:
    """Of the tier, of the cache (another caller's flight included), of the source."""
    numbers = reads.get("l1", 0), reads["cache"] + reads["shared"], reads["source"]
    l1, cache, source = (round(number / seconds, 1) for number in numbers)
    return l1, cache, source
