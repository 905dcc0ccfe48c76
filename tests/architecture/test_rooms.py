"""How few rooms a cached read crosses: numbers that can only fall."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import timedelta
from types import FrameType
from typing import Any

import pytest
from tests.architecture.tree import ROOT

from forze.application.contracts.cache import CacheSpec, L1Spec
from forze.application.contracts.document import DocumentSpec, DocumentWriteTypes
from forze.application.execution import (
    DepsPlan,
    ExecutionContext,
    ExecutionRuntime,
    LifecyclePlan,
)
from forze.domain.models import CreateDocumentCmd, Document, ReadDocument
from forze_memory import MemoryDepsModule
from forze_redis import RedisClient, RedisDepsModule, redis_lifecycle_step

FILES_PER_HIT = 6
CALLS_PER_HIT = 12
FILES_PER_L1_HIT = 2
CALLS_PER_L1_HIT = 2
HITS = 40
"""How many are traced. The client's timers (deadlines, heartbeats) run in between some of them:
the one with the fewest calls shows what a hit itself needs."""


class Item(Document):
    name: str


class ItemCreate(CreateDocumentCmd):
    name: str


class ItemRead(ReadDocument):
    name: str


ITEMS: DocumentSpec[ItemRead, ItemCreate, Any] = DocumentSpec(
    name="items",
    read=ItemRead,
    write=DocumentWriteTypes(domain=Item, create_cmd=ItemCreate),
    cache=CacheSpec(name="items"),
)


@pytest.fixture
async def ctx(valkey_dsn: str) -> AsyncIterator[ExecutionContext]:
    """Documents in process, cached over the wire."""
    redis = RedisDepsModule(client=RedisClient(), caches={"items": {"namespace": "app:items"}})
    runtime = ExecutionRuntime(
        deps=DepsPlan.from_modules(MemoryDepsModule(caches=()), redis),
        lifecycle=LifecyclePlan.from_steps(redis_lifecycle_step(dsn=valkey_dsn)),
    )
    async with runtime.scope() as context:
        yield context


class Trace:
    """Counts the project's own calls, and the files they are in, while it is installed."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self._source = str(ROOT / "src")
        self._resumed: set[FrameType] = set()

    def __call__(self, frame: FrameType, event: str, _: Any) -> Callable[..., Any] | None:
        name = frame.f_code.co_filename
        if event == "call" and name.startswith(self._source) and frame not in self._resumed:
            self._resumed.add(frame)  # a coroutine that goes on after an await is one call
            self.calls.append(f"{name.removeprefix(self._source)}:{frame.f_code.co_qualname}")
        return None

    @property
    def files(self) -> set[str]:
        return {each.partition(":")[0] for each in self.calls}


async def test_a_hit_crosses_few_files_and_few_calls(ctx: ExecutionContext) -> None:
    query = ctx.document.query(ITEMS)
    item = await ctx.document.command(ITEMS).create(ItemCreate(name="a"))
    for _ in range(3):
        await query.get(item.id)
    traces = []
    for _ in range(HITS):
        await asyncio.sleep(0)
        before, trace = query.stats(), Trace()
        sys.setprofile(trace)
        try:
            found = await query.get(item.id)
        finally:
            sys.setprofile(None)
        assert found.name == "a"
        after = query.stats()
        assert before is not None
        assert after is not None
        if after.hits == before.hits + 1:  # else the machine stood still beyond the budget
            traces.append(trace)
    trace = min(traces, key=lambda each: len(each.calls))
    assert any("wire" in each for each in trace.files), "the hit came from nowhere near Redis"
    story = "\n".join(trace.calls)
    assert len(trace.files) <= FILES_PER_HIT, story
    assert len(trace.calls) <= CALLS_PER_HIT, story


async def test_a_hit_in_process_crosses_two_files(ctx: ExecutionContext) -> None:
    l1 = L1Spec(ttl=timedelta(seconds=60))
    hot = replace(ITEMS, name="hot", cache=CacheSpec(name="items", l1=l1))
    query = ctx.document.query(hot)
    item = await ctx.document.command(hot).create(ItemCreate(name="a"))
    for _ in range(3):
        await query.get(item.id)
    trace = Trace()
    sys.setprofile(trace)
    try:
        found = await query.get(item.id)
    finally:
        sys.setprofile(None)
    assert found.name == "a"
    story = "\n".join(trace.calls)
    assert len(trace.files) <= FILES_PER_L1_HIT, story
    assert len(trace.calls) <= CALLS_PER_L1_HIT, story


async def test_resolving_a_port_again_is_a_lookup(ctx: ExecutionContext) -> None:
    query = ctx.document.query(ITEMS)
    trace = Trace()
    sys.setprofile(trace)
    try:
        again = ctx.document.query(ITEMS)
    finally:
        sys.setprofile(None)
    assert again is query
    assert ctx.doc_query(ITEMS) is query
    assert len(trace.calls) == 1, trace.calls
