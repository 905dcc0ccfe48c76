"""What is particular to the memory backend: expiry without accumulation, and its clock."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any

import pytest
from pydantic import BaseModel, SecretStr

from forze.application.contracts.cache import CacheSpec, Fill, Miss
from forze.application.contracts.document import DocumentSpec, DocumentStoreDepKey
from forze.application.contracts.tenancy import bind_deadline
from forze.application.contracts.transaction import TransactionDepKey
from forze.application.execution import Deps, DepsPlan, ExecutionContext, ExecutionRuntime
from forze.domain.models import BaseDTO, CreateDocumentCmd, Document, ReadDocument
from forze.errors import (
    BackendCorrupt,
    BackendTimeout,
    ConfigurationError,
    ConflictError,
    ValidationError,
)
from forze.testing.clock import ManualClock
from forze_memory import MemoryCache, MemoryDepsModule
from forze_memory.columns import stored
from forze_memory.keyspace import Keyspace


def test_a_clock_moves_when_told() -> None:
    clock = ManualClock(start=timedelta(seconds=5))
    assert (clock(), clock.milliseconds) == (5.0, 5_000)
    clock.advance(timedelta(milliseconds=1, microseconds=500))
    assert (clock(), clock.milliseconds) == (5.0015, 5_001)
    clock.advance(timedelta(days=400))
    assert clock.milliseconds == 400 * 86_400_000 + 5_001
    with pytest.raises(ValidationError, match="cannot go back"):
        clock.advance(timedelta(microseconds=-1))


def test_an_entry_lives_until_its_deadline() -> None:
    space: Keyspace[str, int] = Keyspace()
    space.set("k", 1, deadline=10, now=0)
    assert (space.get("k", 9), space.get("k", 10)) == (1, None)
    assert space.deadline("k") == 10
    space.set("k", 2, deadline=5, now=0)
    assert (space.get("k", 4), space.get("k", 5)) == (2, None)
    assert space.remove("k", 4) is True
    assert space.remove("k", 4) is False
    space.set("k", 3, deadline=10, now=0)
    assert space.remove("k", 10) is False, "it was gone already"


def test_expired_entries_do_not_accumulate() -> None:
    space: Keyspace[int, int] = Keyspace()
    for time in range(10_000):
        space.set(time, time, deadline=time + 10, now=time)
        assert len(space) <= 12


def test_a_burst_that_expired_is_swept_by_later_writes() -> None:
    space: Keyspace[int, int] = Keyspace()
    for key in range(1_000):
        space.set(key, key, deadline=10, now=0)
    for key in range(1_000, 1_400):
        space.set(key, key, deadline=100, now=50)
    assert len(space) == 400


def test_rewriting_one_key_keeps_no_history() -> None:
    space: Keyspace[str, int] = Keyspace()
    for number in range(10_000):
        space.set("k", number, deadline=1_000_000 + number, now=0)
    assert len(space._due) <= 66
    assert space.get("k", 0) == 9_999


def test_keys_that_cannot_be_compared_may_share_a_deadline() -> None:
    space: Keyspace[Any, int] = Keyspace()
    for key in ("a", 1, None, ("b", 2)):
        space.set(key, 1, deadline=10, now=0)
    space.set("z", 1, deadline=20, now=10)
    assert space.keys() == ["z"]


class Colour(Enum):
    RED = "red"


class Inner(BaseModel):
    colour: Colour
    sizes: list[int]


def test_stored_values_are_plain_copies() -> None:
    inner = Inner(colour=Colour.RED, sizes=[1])
    moment = datetime(2024, 1, 1, tzinfo=UTC)
    kept = stored({"inner": inner, "secret": SecretStr("s"), "set": {Colour.RED}, "at": moment})
    assert kept == {
        "inner": {"colour": "red", "sizes": [1]},
        "secret": "s",
        "set": {"red"},
        "at": moment,
    }
    inner.sizes.append(2)
    assert kept["inner"]["sizes"] == [1]


class Thing(Document):
    name: str


class ThingCreate(CreateDocumentCmd):
    name: str


class ThingUpdate(BaseDTO):
    name: str | None = None


class ThingRead(ReadDocument):
    name: str


class StrictRead(ReadDocument):
    name: int


THINGS: DocumentSpec[ThingRead, ThingCreate, ThingUpdate] = DocumentSpec(
    name="things",
    read=ThingRead,
    write={"domain": Thing, "create_cmd": ThingCreate, "update_cmd": ThingUpdate},
    cache=CacheSpec(name="things"),
)


def context(module: MemoryDepsModule) -> ExecutionContext:
    return ExecutionContext(module())


async def test_bodies_go_with_their_pointers() -> None:
    clock = ManualClock()
    module = MemoryDepsModule(clock=clock)
    cache = context(module).cache(CacheSpec(name="things"))
    assert isinstance(cache, MemoryCache)
    server = module._server
    for version in ("1", "2", "3"):
        await cache.set_versioned("k", version, version)
    assert len(server.bodies) == 1
    pointers = cache.pointers("schema01")
    await pointers.intend([pointers.address("k")], "w")
    assert len(server.bodies) == 0
    await pointers.done([pointers.address("k")], "w")
    assert len(server.pointers) == 0
    token = pointers.token()
    assert await pointers.read(pointers.address("k"), token) is Miss.LEASED
    await pointers.fill([Fill(pointers.address("k"), token, 1, b"{}", 1_000)])
    await cache.delete("k", hard=False)
    assert (len(server.pointers), len(server.bodies)) == (0, 1), "left to expire"
    clock.advance(timedelta(seconds=2))
    await cache.set_versioned("other", "1", 1)
    assert len(server.bodies) == 1


async def test_no_body_outlives_its_pointer_and_few_hits_prolong_it() -> None:
    clock = ManualClock()
    module = MemoryDepsModule(clock=clock)
    spec = CacheSpec(name="things", sliding_ttl=timedelta(seconds=10))
    pointers, server = context(module).cache(spec).pointers("schema01"), module._server
    address, token = pointers.address("k"), pointers.token()
    cap = server.now() + 25_000

    async def ends(fill: Fill | None = None) -> int:
        if fill is not None:
            assert await pointers.fill([fill]) == [True]
        assert await pointers.read(address, pointers.token()) == b"{}"
        assert server.pointers.deadline(address) == cap
        assert len(server.bodies) == 1
        return server.bodies.deadline((address, "1")) - server.now()

    assert await pointers.read(address, token) is Miss.LEASED
    assert await ends(Fill(address, token, 1, b"{}", 25_000, 10_000)) == 10_000
    for seconds, left in ((2, 8_000), (1, 10_000), (9, 10_000), (5, 8_000), (5, 3_000)):
        clock.advance(timedelta(seconds=seconds))
        assert await ends() == left
    clock.advance(timedelta(seconds=3))
    token = pointers.token()
    assert await pointers.read(address, token) is Miss.LEASED
    cap = server.now() + 7_000
    assert await ends(Fill(address, token, 1, b"{}", 7_000, 10_000)) == 7_000


async def test_a_refresh_frees_the_body_it_replaces() -> None:
    module = MemoryDepsModule(clock=ManualClock())
    spec = CacheSpec(name="things", early_refresh_beta=1.0)
    pointers = context(module).cache(spec).pointers("schema01")
    address, token = pointers.address("k"), pointers.token()
    assert await pointers.read(address, token) is Miss.LEASED
    assert await pointers.fill([Fill(address, token, 1, b"{}", 1_000)]) == [True]
    assert await pointers.elect(address, token)
    assert await pointers.fill([Fill(address, token, 2, b"{}", 1_000)]) == [True]
    assert len(module._server.bodies) == 1


async def test_the_default_module_answers_every_name() -> None:
    ctx = context(MemoryDepsModule())
    thing = await ctx.document.command(THINGS).create(ThingCreate(name="a"))
    async with ctx.transaction("anything"):
        await ctx.document.command(THINGS).update(thing.id, 1, ThingUpdate(name="b"))
    assert (await ctx.document.query(THINGS).get(thing.id)).name == "b"


async def test_it_stands_behind_other_modules() -> None:
    memory, marker = MemoryDepsModule(), object()
    merged = Deps.merge(memory(), Deps.routed({TransactionDepKey: {"special": marker}}))
    assert merged.provide(TransactionDepKey, "special") is marker
    assert merged.provide(TransactionDepKey, "other") is memory().provide(TransactionDepKey)


async def test_a_write_waits_for_a_row_no_longer_than_its_deadline() -> None:
    ctx = context(MemoryDepsModule())
    command = ctx.document.command(THINGS)
    thing = await command.create(ThingCreate(name="a"))

    async def impatient() -> None:
        with bind_deadline(timedelta(milliseconds=20)):
            await ctx.document.command(THINGS).update(thing.id, 1, ThingUpdate(name="c"))

    async with ctx.transaction("things"):
        await command.update(thing.id, 1, ThingUpdate(name="b"))
        late = ctx.spawn(impatient(), name="impatient")
        with pytest.raises(BackendTimeout, match="another transaction holds the document") as info:
            await late
        assert info.value.outcome == "none"
    assert (await ctx.document.query(THINGS).get(thing.id)).name == "b"


async def test_a_statement_that_outlives_its_transaction_changes_nothing() -> None:
    ctx = context(MemoryDepsModule())
    store = ctx.provide(DocumentStoreDepKey, "things")(ctx, THINGS)
    thing = await ctx.document.command(THINGS).create(ThingCreate(name="a"))
    held, release = asyncio.Event(), asyncio.Event()

    async def holder() -> None:
        async with ctx.transaction("things"):
            await store.fetch([thing.id], for_update=True)
            held.set()
            await release.wait()

    other = ctx.spawn(holder(), name="holder")
    await held.wait()
    async with ctx.transaction("things"):
        late = asyncio.ensure_future(store.update(thing.id, 1, {"name": "late"}))
        while not other.done() and not late.done() and not _waiting(store.manager, thing.id):
            await asyncio.sleep(0)
        await asyncio.sleep(0)
    release.set()
    with pytest.raises(ConflictError, match="ended while a task begun in it"):
        await late
    await other
    assert (await store.update(thing.id, 1, {"name": "b"})).name == "b", "nothing is held"


def _waiting(database: Any, pk: Any) -> bool:
    """Whether a statement has come as far as the held row."""
    return bool(database.table("things").locks[pk]._ended._waiters)


async def test_what_is_stored_and_does_not_fit_is_said_so() -> None:
    module = MemoryDepsModule(documents={"things": {}, "strict": {"relation": "things"}})
    ctx = context(module)
    strict: DocumentSpec[StrictRead, Any, Any] = DocumentSpec(name="strict", read=StrictRead)
    thing = await ctx.document.command(THINGS).create(ThingCreate(name="a"))
    with pytest.raises(BackendCorrupt, match=rf"{thing.id}.*StrictRead.*name"):
        await ctx.document.query(strict).get(thing.id)


async def test_the_domain_model_needs_a_transaction() -> None:
    ctx = context(MemoryDepsModule())
    store = ctx.provide(DocumentStoreDepKey, "things")(ctx, THINGS)
    thing = await ctx.document.command(THINGS).create(ThingCreate(name="a"))
    with pytest.raises(ConfigurationError, match="needs a transaction"):
        await store.domain(thing.id)


async def test_one_module_serves_runtimes_one_after_the_other() -> None:
    module = MemoryDepsModule()
    ids = []
    for _ in range(2):
        async with ExecutionRuntime(deps=DepsPlan.from_modules(module)).scope() as ctx:
            ids.append((await ctx.document.command(THINGS).create(ThingCreate(name="a"))).id)
            await asyncio.sleep(0)
            assert await ctx.document.query(THINGS).count() == len(ids)
