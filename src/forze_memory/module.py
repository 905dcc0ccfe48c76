"""The dependencies module of the memory backend."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from forze.application.contracts.cache import CacheDepKey, CachePort, CacheSpec
from forze.application.contracts.counter import CounterDepKey, CounterPort, CounterSpec
from forze.application.contracts.deps import DepKey, Factory, Resolver
from forze.application.contracts.dlock import (
    DistributedLockDepKey,
    DistributedLockPort,
    DistributedLockSpec,
    ReadWriteLockDepKey,
    ReadWriteLockPort,
    ReadWriteLockSpec,
    SemaphoreDepKey,
    SemaphorePort,
    SemaphoreSpec,
)
from forze.application.contracts.document import (
    DocumentSpec,
    DocumentStore,
    DocumentStoreDepKey,
)
from forze.application.contracts.idempotency import (
    IdempotencyDepKey,
    IdempotencyPort,
    IdempotencySpec,
)
from forze.application.contracts.search import (
    SearchResultSnapshotDepKey,
    SearchResultSnapshotPort,
    SearchResultSnapshotSpec,
)
from forze.application.contracts.transaction import TransactionDepKey
from forze.application.execution.deps import Deps
from forze.application.integrations.locks.ports import (
    DistributedLocks,
    ReadWriteLocks,
    Semaphores,
)
from forze.application.integrations.locks.protocol import LockState, SemaphoreState
from forze_memory.cache import MemoryCache
from forze_memory.config import (
    MemoryCacheConfig,
    MemoryDocumentConfig,
    MemoryResourceConfig,
    Names,
    configured_all,
    named,
)
from forze_memory.counter import MemoryCounter, MemoryCounterServer
from forze_memory.dlock import MemoryLocks, MemoryLockServer
from forze_memory.documents import MemoryDocumentStore
from forze_memory.idempotency import MemoryIdempotency, MemoryIdempotencyServer
from forze_memory.pointers import MemoryCacheServer
from forze_memory.search_snapshot import MemorySearchSnapshot, MemorySnapshotServer
from forze_memory.semaphore import MemorySemaphores
from forze_memory.transactions import MemoryDatabase

K = TypeVar("K")
S = TypeVar("S")
P = TypeVar("P")


class MemoryDepsModule:
    """Every port in process. The data lives in this object.

    Left out, an argument answers every name that no other module answers; given (names, or
    configs by name) it answers those. Two runtimes over one module share its data as two
    processes share a server, on one event loop. ``clock`` (seconds, monotonic) is what
    entries, leases and records expire by.
    """

    def __init__(
        self,
        *,
        documents: Names[MemoryDocumentConfig] = None,
        caches: Names[MemoryCacheConfig] = None,
        counters: Names[MemoryResourceConfig] = None,
        idempotency: Names[MemoryResourceConfig] = None,
        search_snapshots: Names[MemoryResourceConfig] = None,
        dlocks: Names[MemoryResourceConfig] = None,
        semaphores: Names[MemoryResourceConfig] = None,
        rwlocks: Names[MemoryResourceConfig] = None,
        tx: Iterable[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fallback: dict[DepKey[Any], Any] = {}
        self._routed: dict[DepKey[Any], dict[str, Any]] = {}
        database = MemoryDatabase()
        self._server = server = MemoryCacheServer(clock)

        def document(
            config: MemoryDocumentConfig, spec: DocumentSpec[Any, Any, Any], _: Resolver
        ) -> DocumentStore[Any]:
            return MemoryDocumentStore(database, spec, config)

        def cache(config: MemoryCacheConfig, spec: CacheSpec, ctx: Resolver) -> CachePort:
            return MemoryCache(server, spec, config, ctx)

        counts = MemoryCounterServer(clock)

        def counter(config: MemoryResourceConfig, spec: CounterSpec, ctx: Resolver) -> CounterPort:
            return MemoryCounter(counts, spec, config, ctx)

        records = MemoryIdempotencyServer(clock)

        def once(
            config: MemoryResourceConfig, spec: IdempotencySpec, ctx: Resolver
        ) -> IdempotencyPort:
            return MemoryIdempotency(records, spec, config, ctx)

        snapshots = MemorySnapshotServer(clock)

        def search_snapshot(
            config: MemoryResourceConfig, spec: SearchResultSnapshotSpec, _: Resolver
        ) -> SearchResultSnapshotPort:
            return MemorySearchSnapshot(snapshots, spec, config)

        self._add(DocumentStoreDepKey, "documents", MemoryDocumentConfig, documents, document)
        self._add(CacheDepKey, "caches", MemoryCacheConfig, caches, cache)
        self._add(CounterDepKey, "counters", MemoryResourceConfig, counters, counter)
        self._add(IdempotencyDepKey, "idempotency", MemoryResourceConfig, idempotency, once)
        self._add(
            SearchResultSnapshotDepKey,
            "search_snapshots",
            MemoryResourceConfig,
            search_snapshots,
            search_snapshot,
        )
        self._add(DistributedLockDepKey, "dlocks", MemoryResourceConfig, dlocks, _dlocks(clock))
        self._add(
            SemaphoreDepKey, "semaphores", MemoryResourceConfig, semaphores, _semaphores(clock)
        )
        self._add(ReadWriteLockDepKey, "rwlocks", MemoryResourceConfig, rwlocks, _rwlocks(clock))
        if tx is None:
            self._fallback[TransactionDepKey] = database
        else:
            self._routed[TransactionDepKey] = dict.fromkeys(
                named(tx, "MemoryDepsModule tx"), database
            )

    def __call__(self) -> Deps:
        """The dependencies."""
        return Deps(fallback=self._fallback, routed=self._routed)

    def _add(
        self,
        key: DepKey[Factory[S, P]],
        argument: str,
        cls: type[K],
        names: Names[K],
        make: Callable[[K, S, Resolver], P],
    ) -> None:
        """Register what ``make`` makes of each config, or of the default for every name."""
        configs = configured_all(cls, names, f"MemoryDepsModule {argument}")
        if configs is None:
            self._fallback[key] = _factory(make, cls())
        else:
            self._routed[key] = {name: _factory(make, each) for name, each in configs.items()}


def _factory(make: Callable[[K, S, Resolver], P], config: K) -> Factory[S, P]:
    return lambda ctx, spec: make(config, spec, ctx)


def _dlocks(
    clock: Callable[[], float],
) -> Callable[[MemoryResourceConfig, DistributedLockSpec, Resolver], DistributedLockPort]:
    server = MemoryLockServer(clock, LockState)

    def make(
        config: MemoryResourceConfig, spec: DistributedLockSpec, ctx: Resolver
    ) -> DistributedLockPort:
        resource = f"lock {spec.name!r}"
        locks = MemoryLocks(server, config, spec.name, resource=resource, ttl=spec.ttl)
        return DistributedLocks(locks, spec, ctx)

    return make


def _semaphores(
    clock: Callable[[], float],
) -> Callable[[MemoryResourceConfig, SemaphoreSpec, Resolver], SemaphorePort]:
    server = MemoryLockServer(clock, SemaphoreState)

    def make(config: MemoryResourceConfig, spec: SemaphoreSpec, ctx: Resolver) -> SemaphorePort:
        return Semaphores(MemorySemaphores(server, config, spec), spec, ctx)

    return make


def _rwlocks(
    clock: Callable[[], float],
) -> Callable[[MemoryResourceConfig, ReadWriteLockSpec, Resolver], ReadWriteLockPort]:
    server = MemoryLockServer(clock, LockState)

    def make(
        config: MemoryResourceConfig, spec: ReadWriteLockSpec, ctx: Resolver
    ) -> ReadWriteLockPort:
        resource = f"read/write lock {spec.name!r}"
        locks = MemoryLocks(server, config, spec.name, resource=resource, ttl=spec.ttl)
        return ReadWriteLocks(locks, spec, ctx)

    return make
