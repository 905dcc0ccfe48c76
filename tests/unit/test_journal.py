"""What a process does about writes that the cache could not be told of."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

import pytest

from forze.application.contracts.cache import (
    CacheDepKey,
    CachePort,
    CacheSpec,
    Miss,
    PointerCache,
)
from forze.application.contracts.deps import Resolver
from forze.application.contracts.document import (
    DocumentSpec,
    DocumentStoreDepKey,
    DocumentWriteTypes,
)
from forze.application.execution import Deps, ExecutionContext
from forze.application.integrations.document.outage import Journal
from forze.domain.models import CreateDocumentCmd, Document, ReadDocument
from forze.errors import BackendTimeout
from forze_memory import MemoryDepsModule


class Note(Document):
    text: str


class NoteCreate(CreateDocumentCmd):
    text: str


class NoteUpdate(CreateDocumentCmd):
    text: str


class NoteRead(ReadDocument):
    text: str


SPEC: DocumentSpec[NoteRead, NoteCreate, NoteUpdate] = DocumentSpec(
    name="notes",
    read=NoteRead,
    write=DocumentWriteTypes(domain=Note, create_cmd=NoteCreate, update_cmd=NoteUpdate),
    cache=CacheSpec(name="notes"),
)


class Deaf:
    """A cache that answers reads, and can be made not to hear of writes."""

    def __init__(self, pointers: PointerCache) -> None:
        self._pointers = pointers
        self.deaf = False
        self.told: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pointers, name)

    def available(self, namespace: str | None = None) -> bool:
        return not self.deaf

    async def intend(self, addresses: Sequence[str], write_id: str) -> None:
        self._hear()
        await self._pointers.intend(addresses, write_id)

    async def done(self, addresses: Sequence[str], write_id: str) -> None:
        self._hear()
        await self._pointers.done(addresses, write_id)
        self.told += addresses
        await self.gate.wait()

    async def clear(self, namespace: str) -> int:
        self._hear()
        return await self._pointers.clear(namespace)

    def _hear(self) -> None:
        if self.deaf:
            raise BackendTimeout("no answer", backend="cache", outcome="unknown")


def world() -> tuple[ExecutionContext, Deaf]:
    """A context over memory whose cache is a :class:`Deaf` one."""
    memory = MemoryDepsModule()()
    made: list[Deaf] = []

    def cache(ctx: Resolver, spec: CacheSpec) -> CachePort:
        real = memory.provide(CacheDepKey)(ctx, spec)
        pointers = real.pointers

        def deaf(fingerprint: str) -> Any:
            made.append(Deaf(pointers(fingerprint)))
            return made[-1]

        real.pointers = deaf  # type: ignore[method-assign]
        return real

    ctx = ExecutionContext(
        Deps({DocumentStoreDepKey: memory.provide(DocumentStoreDepKey), CacheDepKey: cache})
    )
    ctx.bind(SPEC)
    return ctx, made[0]


async def test_what_the_cache_was_not_told_of_is_bypassed() -> None:
    """P4: this process reads what it wrote, although the cache still holds the old value."""
    ctx, cache = world()
    docs, query = ctx.document.command(SPEC), ctx.document.query(SPEC)
    note = await docs.create(NoteCreate(text="old"))
    assert (await query.get(note.id)).text == "old"
    cache.deaf = True
    await docs.update(note.id, 1, NoteUpdate(text="new"))
    stats = query.stats()
    assert stats is not None
    assert stats.journal == 1
    assert (await query.get(note.id)).text == "new"
    assert [each.text for each in await query.get_many([note.id])] == ["new"]
    assert isinstance(await cache.read(cache.address(str(note.id)), "t"), bytes), "the old body"
    await ctx.close(timedelta(seconds=1))


class Settling:
    """A journal over a :class:`Deaf` cache."""

    def __init__(self, *, capacity: int = 10) -> None:
        self.ctx, self.cache = world()
        self.cache.deaf = True
        self.journal = Journal(self.cache, self.ctx, capacity=capacity)
        self.addresses = [self.cache.address(str(each)) for each in range(20)]

    async def hear(self) -> None:
        """The cache hears again, and everything owed is settled."""
        self.cache.deaf = False
        self.journal.owe(())
        await self.ctx.close(timedelta(seconds=2))


class Told:
    """A tier that remembers what it was told."""

    def __init__(self) -> None:
        self.dropped: list[str] = []
        self.flushes = 0

    def drop(self, addresses: Iterable[str], *, pushed: bool = False) -> None:
        assert not pushed
        self.dropped += addresses

    def flush(self) -> None:
        self.flushes += 1

    def trust(self, until: float, bound_seconds: float) -> None:
        raise AssertionError("a journal trusts nobody")


async def test_a_debt_takes_the_entry_out_of_the_tier() -> None:
    """P12: what the cache was not told of is not served from the process either."""
    ctx, cache = world()
    cache.deaf = True
    tier = Told()
    journal = Journal(cache, ctx, tier=tier)
    address = cache.address("one")
    journal.owe((address,))
    assert (tier.dropped, tier.flushes) == ([address], 0)
    journal.owe_namespace(cache.namespace())
    assert tier.flushes == 1
    cache.deaf = False
    await ctx.close(timedelta(seconds=2))


async def test_a_debt_is_settled_once_the_cache_hears() -> None:
    """P4: every key that is owed is invalidated, then no longer bypassed."""
    it = Settling()
    it.journal.owe(it.addresses[:3])
    assert all(it.journal.bypasses(each) for each in it.addresses[:3])
    assert not it.journal.bypasses(it.addresses[3])
    await it.hear()
    assert sorted(it.cache.told) == sorted(it.addresses[:3])
    assert not it.journal.active


async def test_an_intent_that_arrived_unanswered_goes_with_its_debt() -> None:
    """P4: else readers would pass the cache by until it lapses."""
    it = Settling()
    one, two, three = it.addresses[:3]
    arrived = it.cache._pointers
    for write_id, addresses in (("w1", (one, two)), ("w2", (two,))):
        await arrived.intend(addresses, write_id)
        it.journal.owe(addresses, write_id)
    it.journal.owe((three,))
    await arrived.done((two,), "w2")
    it.journal.settled((two,), it.journal.now(), "w2")
    assert it.journal.bypasses(two), "w1 owes it as well"
    await it.hear()
    assert not it.journal.active
    for address in (one, two, three):
        assert await it.cache.read(address, "t") is Miss.LEASED


async def test_too_many_debts_clear_the_namespace() -> None:
    """P4: a full journal bypasses everything until the whole namespace has been dropped."""
    it = Settling(capacity=5)
    await it.cache.read(it.addresses[19], "t")
    it.journal.owe(it.addresses[:6])
    assert it.journal.overflowed
    assert it.journal.bypasses(it.addresses[19])
    await it.hear()
    assert not it.journal.active
    assert await it.cache.read(it.addresses[19], "t") is Miss.LEASED, "its pointer was dropped"


async def test_a_debt_made_while_an_older_one_is_settled_stands() -> None:
    """P4: an invalidation that was sent before a write says nothing about that write."""
    it = Settling()
    key = it.addresses[0]
    it.journal.owe([key])
    it.cache.gate.clear()
    it.cache.deaf = False
    it.journal.owe(())
    async with asyncio.timeout(1):
        while not it.cache.told:
            await asyncio.sleep(0)
    it.cache.deaf = True
    it.journal.owe([key])
    it.cache.gate.set()
    await asyncio.sleep(0.01)
    assert it.journal.bypasses(key)
    mark = it.journal.now()
    it.journal.owe([key])
    it.journal.settled([key], mark, "w")
    assert it.journal.bypasses(key)
    it.journal.settled([key], it.journal.now(), "w")
    assert not it.journal.active


@pytest.mark.parametrize("many", [1, 1200])
async def test_batches(many: int) -> None:
    """P4: long journals are told in batches, each key once."""
    it = Settling(capacity=2000)
    keys = [it.cache.address(f"k{each}") for each in range(many)]
    it.journal.owe(keys)
    await it.hear()
    assert sorted(it.cache.told) == sorted(keys)
