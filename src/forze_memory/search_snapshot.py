"""Search-result snapshots in process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta

from forze.application.contracts.search import (
    ResultId,
    SearchResultSnapshotSpec,
    SnapshotMeta,
    SnapshotState,
)
from forze.application.integrations.snapshotting import Run, Snapshotting
from forze_memory.addresses import ResourceAddresses
from forze_memory.config import MemoryResourceConfig
from forze_memory.keyspace import Keyspace


class MemorySnapshotServer:
    """What all snapshots of one module share. ``clock`` answers seconds, and never goes back."""

    __slots__ = ("_clock", "runs")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.runs: Keyspace[str, Run] = Keyspace()

    def now(self) -> int:
        """Milliseconds on the server's clock."""
        return round(self._clock() * 1000)


class MemorySearchSnapshot(Snapshotting):
    """Snapshots in process. Implements ``SearchResultSnapshotPort``."""

    def __init__(
        self,
        server: MemorySnapshotServer,
        spec: SearchResultSnapshotSpec,
        config: MemoryResourceConfig,
    ) -> None:
        super().__init__(spec)
        self._server = server
        self._addresses = ResourceAddresses(config, spec.name, f"search snapshot {spec.name!r}")

    @property
    def tenant_aware(self) -> bool:
        return self._addresses.tenant_aware

    def _address(self, run: str) -> str:
        return self._addresses.of(run)

    async def _put(self, address: str, run: Run, life_ms: int) -> None:
        await asyncio.sleep(0)
        now = self._server.now()
        self._server.runs.set(address, run, now + life_ms, now)

    async def _page(
        self, address: str, offset: int, limit: int, expected: str | None
    ) -> list[ResultId] | None:
        await asyncio.sleep(0)
        run = self._server.runs.get(address, self._server.now())
        if run is None or expected not in (None, run.fingerprint):
            return None
        return list(run.ids[offset : offset + limit])

    async def _meta(self, address: str, run_id: str, expected: str | None) -> SnapshotMeta:
        await asyncio.sleep(0)
        now = self._server.now()
        run = self._server.runs.get(address, now)
        if run is None:
            return SnapshotMeta(run_id=run_id, state=SnapshotState.MISSING)
        as_expected = expected in (None, run.fingerprint)
        return SnapshotMeta(
            run_id=run_id,
            state=SnapshotState.COMPLETE if as_expected else SnapshotState.MISMATCH,
            fingerprint=run.fingerprint,
            total=len(run.ids),
            truncated=run.truncated,
            expires_in=timedelta(milliseconds=self._server.runs.deadline(address) - now),
        )

    async def _delete(self, address: str) -> bool:
        await asyncio.sleep(0)
        return self._server.runs.remove(address, self._server.now())
