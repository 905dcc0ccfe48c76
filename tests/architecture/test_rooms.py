"""How few rooms a cached read crosses: numbers that can only fall."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from tests.architecture.application import ITEMS, ItemCreate, replicas
from tests.architecture.tree import ROOT

FILES_PER_HIT = 6
CALLS_PER_HIT = 12


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


async def test_a_hit_crosses_few_files_and_few_calls(valkey_dsn: str) -> None:
    async with replicas(1, valkey_dsn) as (ctx,):
        query = ctx.document.query(ITEMS)
        item = await ctx.document.command(ITEMS).create(ItemCreate(name="a"))
        for _ in range(3):
            await query.get(item.id)
        await asyncio.sleep(0)
        hits, trace = query.stats().hits, Trace()
        sys.setprofile(trace)
        try:
            found = await query.get(item.id)
        finally:
            sys.setprofile(None)
        assert found.name == "a"
        assert query.stats().hits == hits + 1
        assert any("wire" in each for each in trace.files), "the hit came from nowhere near Redis"
        story = "\n".join(trace.calls)
        assert len(trace.files) <= FILES_PER_HIT, story
        assert len(trace.calls) <= CALLS_PER_HIT, story


async def test_resolving_a_port_again_is_a_lookup(valkey_dsn: str) -> None:
    async with replicas(1, valkey_dsn) as (ctx,):
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
