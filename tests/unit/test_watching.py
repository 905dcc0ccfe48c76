"""What becomes of reads, as those who watch a document see it; and that nobody pays otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Hashable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from forze.application.contracts.cache import CacheSpec, Entry, L1Spec
from forze.application.contracts.document import DocumentSpec, DocumentWriteTypes
from forze.application.execution import DepsPlan, ExecutionContext, ExecutionRuntime
from forze.application.integrations.document import watching
from forze.application.integrations.document.coordinator import Coordinator
from forze.application.integrations.document.explaining import (
    Explanation,
    explain,
    invalidate,
    source_row,
)
from forze.application.integrations.document.l1.store import L1Stats
from forze.application.integrations.document.watching import Reason, watch, why_absent
from forze.domain.models import BaseDTO, CreateDocumentCmd, Document, ReadDocument
from forze.errors import NotFoundError
from forze.testing.clock import ManualClock
from forze_memory import MemoryDepsModule


class Note(Document):
    text: str


class NoteCreate(CreateDocumentCmd):
    text: str


class NoteUpdate(BaseDTO):
    text: str


class NoteRead(ReadDocument):
    text: str


CACHE = CacheSpec(name="notes", ttl=timedelta(minutes=5))
NOTES: DocumentSpec[NoteRead, NoteCreate, NoteUpdate] = DocumentSpec(
    name="notes",
    read=NoteRead,
    write=DocumentWriteTypes(domain=Note, create_cmd=NoteCreate, update_cmd=NoteUpdate),
    cache=CACHE,
)
NEAR = replace(
    NOTES, name="near", cache=replace(CACHE, name="near", l1=L1Spec(ttl=timedelta(minutes=1)))
)


@dataclass
class World:
    """A context, a document in it, and the clock of its cache."""

    ctx: ExecutionContext
    clock: ManualClock
    pk: UUID

    def coordinator(self, spec: DocumentSpec[Any, Any, Any] = NOTES) -> Coordinator[Any, Any]:
        self.ctx.document.query(spec)
        (kind,) = [each for each in self.ctx.document.kinds() if each.spec is spec]
        assert kind.coordinator is not None
        return kind.coordinator

    async def explain(self, spec: DocumentSpec[Any, Any, Any] = NOTES) -> Explanation:
        assert spec.cache is not None
        return await explain(spec.cache, self.coordinator(spec), self.pk)

    async def reads(self, spec: DocumentSpec[Any, Any, Any] = NOTES) -> list[tuple[str, str, Any]]:
        """Its last reads, the oldest first: by whom, why, and what became of them."""
        found = (await self.explain(spec)).reads
        assert found is not None
        return [(each.answered_by, each.reason.value, each.outcome) for each in reversed(found)]


@pytest.fixture
async def world() -> AsyncIterator[World]:
    clock = ManualClock()
    runtime = ExecutionRuntime(deps=DepsPlan.from_modules(MemoryDepsModule(clock=clock)))
    async with runtime.scope() as ctx:
        note = await ctx.document.command(NOTES).create(NoteCreate(text="a"))
        yield World(ctx, clock, note.id)


async def test_a_load_then_a_hit(world: World) -> None:
    watch(world.coordinator(), world.pk)
    for _ in range(3):
        await world.ctx.document.query(NOTES).get(world.pk)
    assert await world.reads() == [("source", "absent", "filled"), ("cache", "hit", None)]
    reads = (await world.explain()).reads
    assert reads is not None
    assert [each.times for each in reads] == [2, 1]
    assert reads[0].at >= reads[0].since > 0


async def test_an_entry_that_lived_its_life_has_expired(world: World) -> None:
    query = world.ctx.document.query(NOTES)
    await query.get(world.pk)
    watch(world.coordinator(), world.pk)
    document = world.coordinator().watch
    assert document is not None
    await world.explain()
    watched = document._documents[world.coordinator().address(world.pk)]
    assert watched.dies_at is not None
    watched.dies_at = 0.0  # the memory cache's clock is not the process's
    world.clock.advance(timedelta(minutes=6))
    await world.explain()
    await query.get(world.pk)
    assert await world.reads() == [("source", "expired", "filled")]


async def test_an_entry_that_was_invalidated_has_not(world: World) -> None:
    query = world.ctx.document.query(NOTES)
    watch(world.coordinator(), world.pk)
    found = await query.get(world.pk)
    await world.ctx.document.command(NOTES).update(found.id, found.rev, NoteUpdate(text="b"))
    await query.get(world.pk)
    assert await world.reads() == [("source", "absent", "filled")]
    reads = (await world.explain()).reads
    assert reads is not None
    assert reads[0].times == 2


async def test_a_write_in_flight_sends_reads_to_the_source(world: World) -> None:
    coordinator = world.coordinator()
    address = coordinator.address(world.pk)
    await coordinator.outlet.pointers.intend([address], "w1")
    watch(coordinator, world.pk)
    await world.ctx.document.query(NOTES).get(world.pk)
    assert await world.reads() == [("source", "intent", "bypassed")]
    found = await world.explain()
    assert (found.next_read, found.next_reason) == ("source", Reason.INTENT)
    assert found.entry is not None
    assert (found.entry.state, found.entry.writers) == ("intent", 1)


async def test_another_readers_lease_is_waited_for(world: World) -> None:
    coordinator = world.coordinator()
    pointers, address = coordinator.outlet.pointers, coordinator.address(world.pk)
    token = pointers.token()
    await pointers.read(address, token)
    before = await world.explain()
    assert (before.next_read, before.next_reason) == ("cache", Reason.LEASE_HELD)
    watch(coordinator, world.pk)
    reading = asyncio.ensure_future(world.ctx.document.query(NOTES).get(world.pk))
    async with asyncio.timeout(10):
        while not coordinator.loading(address):
            await asyncio.sleep(0.001)
    during = await world.explain()
    assert (during.next_read, during.next_reason) == ("shared", Reason.JOINED)
    assert during.loading
    joined = asyncio.ensure_future(world.ctx.document.query(NOTES).get(world.pk))
    await asyncio.sleep(0.01)
    pointers.give_back([address], token)
    async with asyncio.timeout(10):
        await asyncio.gather(reading, joined)
    assert ("source", "lease_held", "filled") in await world.reads()
    assert ("shared", "joined", None) in await world.reads()


async def test_what_is_owed_goes_past_the_cache(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    coordinator = world.coordinator()
    monkeypatch.setattr(coordinator.outlet.pointers, "available", lambda place=None: False)
    watch(coordinator, world.pk)
    coordinator.outlet.journal.owe([coordinator.address(world.pk)], "w1")
    await world.ctx.document.query(NOTES).get(world.pk)
    assert await world.reads() == [("source", "journal", "bypassed")]
    found = await world.explain()
    assert (found.journal, found.next_read, found.next_reason) == (True, "source", Reason.JOURNAL)


async def test_reads_in_a_transaction_and_failures_are_told(world: World) -> None:
    coordinator, missing = world.coordinator(), uuid4()
    watch(coordinator, world.pk)
    watch(coordinator, missing)
    async with world.ctx.transaction("notes"):
        await world.ctx.document.query(NOTES).get(world.pk)
    assert await world.reads() == [("source", "transaction", None)]
    with pytest.raises(NotFoundError):
        await world.ctx.document.query(NOTES).get(missing)
    found = (await explain(CACHE, coordinator, missing)).reads
    assert found is not None
    assert (found[0].answered_by, found[0].outcome) == ("nobody", "NotFoundError")


async def test_a_read_that_refreshes_early_went_to_the_source(world: World) -> None:
    eager = replace(
        NOTES, name="eager", cache=replace(CACHE, name="eager", early_refresh_beta=1e12)
    )
    world.pk = (await world.ctx.document.command(eager).create(NoteCreate(text="b"))).id
    query, coordinator = world.ctx.document.query(eager), world.coordinator(eager)
    await query.get(world.pk)
    watch(coordinator, world.pk)
    await query.get(world.pk)
    assert await world.reads(eager) == [("source", "refreshed", None)]


async def test_a_read_that_is_cancelled_was_answered_by_nobody(world: World) -> None:
    coordinator = world.coordinator()
    watch(coordinator, world.pk)
    reading = asyncio.ensure_future(world.ctx.document.query(NOTES).get(world.pk))
    await asyncio.sleep(0)  # it has begun, and asks the cache
    reading.cancel()
    await asyncio.wait({reading})
    assert await world.reads() == [("nobody", "cut_short", "CancelledError")]


class Closed:
    """A store of the application's own, which cannot be looked into."""

    def __init__(self) -> None:
        self.entries: dict[Hashable, object] = {}
        self.get, self.set = self.entries.get, self.entries.__setitem__
        self.clear = self.entries.clear

    def invalidate(self, key: Hashable) -> None:
        self.entries.pop(key, None)

    def stats(self) -> L1Stats:
        return L1Stats(hits=0, misses=0, evictions=0, size=len(self.entries), capacity=9)


async def test_a_store_that_cannot_be_looked_into_is_said_to_be(world: World) -> None:
    l1 = L1Spec(ttl=timedelta(minutes=1), store_factory=lambda _: Closed())
    spec = replace(NOTES, name="closed", cache=replace(CACHE, name="closed", l1=l1))
    world.pk = (await world.ctx.document.command(spec).create(NoteCreate(text="b"))).id
    await world.ctx.document.query(spec).get(world.pk)
    assert (await world.explain(spec)).l1 == "hidden"


async def test_reads_of_many_are_told(world: World) -> None:
    query = world.ctx.document.query(NOTES)
    other = (await world.ctx.document.command(NOTES).create(NoteCreate(text="b"))).id
    watch(world.coordinator(), world.pk)
    for _ in range(2):
        await query.get_many([world.pk, other])
    assert await world.reads() == [("source", "absent", None), ("cache", "hit", None)]


async def test_the_process_s_own_entries(world: World) -> None:
    spec = NEAR
    world.pk = (await world.ctx.document.command(spec).create(NoteCreate(text="b"))).id
    query, coordinator = world.ctx.document.query(spec), world.coordinator(spec)
    tier = coordinator.tier
    assert tier is not None
    usual = tier.find
    watch(coordinator, world.pk)
    before = query.l1_stats()
    for _ in range(2):
        await query.get(world.pk)
    await query.get_many([world.pk])
    after = query.l1_stats()
    assert await world.reads(spec) == [("source", "absent", "filled"), ("l1", "l1", None)]
    found = await world.explain(spec)
    assert (found.l1, found.l1_rev, found.next_read) == ("kept", 1, "l1")
    assert found.l1_left_seconds is not None
    assert 0 < found.l1_left_seconds <= 60
    assert query.l1_stats() == after != before, "looking counted as a read"
    ended = coordinator.watch
    assert ended is not None
    ended.end()
    assert (coordinator.watch, tier.find) == (None, usual)
    tier.trust(0.0, 0.0)
    distrusted = await world.explain(spec)
    assert (distrusted.l1, distrusted.next_read) == ("distrusted", "cache")


async def test_a_watch_ends_by_itself_and_costs_nothing_then(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "WATCH_SECONDS", 0.05)
    coordinator = world.coordinator(NEAR)
    tier = coordinator.tier
    assert tier is not None
    usual = tier.find
    watch(coordinator, world.pk)
    watch(coordinator, world.pk)
    assert tier.find != usual
    async with asyncio.timeout(3):
        while coordinator.watch is not None:
            await asyncio.sleep(0.01)
    assert tier.find == usual
    assert (await world.explain(NEAR)).reads is None


async def test_few_documents_are_watched_at_a_time(world: World) -> None:
    coordinator = world.coordinator(NEAR)
    watch(coordinator, world.pk)
    for _ in range(watching.MOST_WATCHED):
        watch(coordinator, uuid4())
    assert (await world.explain(NEAR)).reads is None
    assert coordinator.watch is not None
    assert len(coordinator.watch._documents) == watching.MOST_WATCHED
    assert len(coordinator.watch._by_key) == watching.MOST_WATCHED


async def test_invalidating_refuses_what_was_being_loaded(world: World) -> None:
    coordinator, query = world.coordinator(), world.ctx.document.query(NOTES)
    await query.get(world.pk)
    assert (await world.explain()).next_read == "cache"
    assert await invalidate(coordinator, world.pk)
    found = await world.explain()
    assert (found.next_read, found.next_reason) == ("source", Reason.ABSENT)
    row = await source_row(world.ctx.document.kinds()[0].store, world.pk)
    assert row is not None
    assert row.rev == 1
    assert await source_row(world.ctx.document.kinds()[0].store, uuid4()) is None


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        (None, Reason.ABSENT),
        (Entry("absent"), Reason.ABSENT),
        (Entry("intent", writers=1), Reason.INTENT),
        (Entry("lease"), Reason.LEASE_HELD),
        (Entry("lease", same_schema=False), Reason.OTHER_SCHEMA),
        (Entry("value", version="1", size_bytes=9), Reason.HIT),
        (Entry("value", version="1"), Reason.BODY_GONE),
        (Entry("value", version="1", size_bytes=9, same_schema=False), Reason.OTHER_SCHEMA),
        (Entry("value", version="1", size_bytes=9, same_generation=False), Reason.OTHER_GENERATION),
        (Entry("intent", writers=1, same_generation=False), Reason.INTENT),
    ],
)
def test_why_there_was_nothing_to_hit(entry: Entry | None, why: Reason) -> None:
    assert why_absent(entry, outlived=False) is why
    assert (entry is not None and entry.readable) is (why is Reason.HIT)
