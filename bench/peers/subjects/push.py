"""How soon replicas of forze, each with an L1 and pushes, show the write of another one."""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

sys.path.insert(0, str(Path(__file__).parents[3]))  # `bench` is there

from bench.workload import ProductUpdate, hot_spec, wired

from forze.application.contracts.cache import L1Spec

SPEC = hot_spec(L1Spec(ttl=timedelta(minutes=1)))
KEPT_WITHIN_SECONDS = 5.0


class Subject:
    """One replica that writes and several that read, in one process and on one loop."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._at: Any = SimpleNamespace(
            postgres=SimpleNamespace(dsn=settings["postgres"]),
            valkey=SimpleNamespace(dsn=settings["valkey"]),
        )
        self._ids = [UUID(each) for each in settings["ids"]]

    @classmethod
    async def open(cls, settings: dict[str, Any]) -> Subject:
        """Nothing is connected yet: each measurement brings its own replicas."""
        return cls(settings)

    async def close(self) -> None:
        """Nothing is left open."""

    async def do_push(self, replicas: int, updates: int) -> dict[str, Any]:
        """``ms`` from each update's acknowledgement until each replica has read it, and how many
        of them read something ``old`` before.

        All of them keep the document in process when it is updated, for a minute.
        """
        late: list[float] = []
        old = 0
        async with AsyncExitStack() as stack:
            writer, *readers = [
                await stack.enter_async_context(wired(self._at, SPEC, invalidation_push=True))
                for _ in range(replicas + 1)
            ]
            docs, queries = writer.document.command(SPEC), [r.document.query(SPEC) for r in readers]
            for number in range(updates):
                pk = self._ids[number % len(self._ids)]
                document = await writer.document.query(SPEC).get(pk, skip_cache=True)
                for query in queries:
                    await _kept(query, pk)
                updated = await docs.update(pk, document.rev, ProductUpdate(price=number))
                acknowledged = time.perf_counter()
                shown = await asyncio.gather(*(_shown(each, pk, updated.rev) for each in queries))
                late += [(at - acknowledged) * 1e3 for at, _ in shown]
                old += sum(again > 0 for _, again in shown)
        return {"ms": late, "old": old}


async def _kept(query: Any, pk: UUID) -> None:
    """Read until the replica answers by itself."""
    until = time.perf_counter() + KEPT_WITHIN_SECONDS
    while time.perf_counter() < until:
        hits = query.l1_stats().hits
        await query.get(pk)
        if query.l1_stats().hits > hits:
            return
    raise TimeoutError(f"a replica does not keep {pk}")


async def _shown(query: Any, pk: UUID, rev: int) -> tuple[float, int]:
    """When the replica had read it, and how many reads gave something older."""
    again = 0
    while (await query.get(pk)).rev < rev:
        again += 1
        await asyncio.sleep(0)
    return time.perf_counter(), again
