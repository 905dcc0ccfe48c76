"""The dependencies module of the memory backend."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeVar

from forze.application.contracts.cache import CacheDepKey
from forze.application.contracts.counter import CounterDepKey
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
    DocumentStoreDepKey,
)
from forze.application.contracts.idempotency import (
    IdempotencyDepKey,
)
from forze.application.contracts.search import (
    SearchResultSnapshotDepKey,
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

        counts, records = MemoryCounterServer(clock), MemoryIdempotencyServer(clock)
        snapshots = MemorySnapshotServer(clock)
        resource = MemoryResourceConfig
        self._add(
            DocumentStoreDepKey,
            "documents",
            MemoryDocumentConfig,
            documents,
            lambda spec, config, _: MemoryDocumentStore(database, spec, config),
        )
        self._add(CacheDepKey, "caches", MemoryCacheConfig, caches, partial(MemoryCache, server))
        self._add(CounterDepKey, "counters", resource, counters, partial(MemoryCounter, counts))
        self._add(
            IdempotencyDepKey,
            "idempotency",
            resource,
            idempotency,
            partial(MemoryIdempotency, records),
        )
        self._add(
            SearchResultSnapshotDepKey,
            "search_snapshots",
            resource,
            search_snapshots,
            lambda spec, config, _: MemorySearchSnapshot(snapshots, spec, config),
        )
        self._add(DistributedLockDepKey, "dlocks", resource, dlocks, _dlocks(clock))
        self._add(SemaphoreDepKey, "semaphores", resource, semaphores, _semaphores(clock))
        self._add(ReadWriteLockDepKey, "rwlocks", resource, rwlocks, _rwlocks(clock))
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
        make: Callable[[S, K, Resolver], P],
    ) -> None:
        """Register what ``make`` makes of each config, or of the default for every name."""
        configs = configured_all(cls, names, f"MemoryDepsModule {argument}")
        if configs is None:
            self._fallback[key] = _factory(make, cls())
        else:
            self._routed[key] = {name: _factory(make, each) for name, each in configs.items()}


def _factory(make: Callable[[S, K, Resolver], P], config: K) -> Factory[S, P]:
    return lambda ctx, spec: make(spec, config, ctx)


def _dlocks(
    clock: Callable[[], float],
) -> Callable[[DistributedLockSpec, MemoryResourceConfig, Resolver], DistributedLockPort]:
    server = MemoryLockServer(clock, LockState)

    def make(
        spec: DistributedLockSpec, config: MemoryResourceConfig, ctx: Resolver
    ) -> DistributedLockPort:
        resource = f"lock {spec.name!r}"
        locks = MemoryLocks(server, config, spec.name, resource=resource, ttl=spec.ttl)
        return DistributedLocks(locks, spec, ctx)

    return make


def _semaphores(
    clock: Callable[[], float],
) -> Callable[[SemaphoreSpec, MemoryResourceConfig, Resolver], SemaphorePort]:
    server = MemoryLockServer(clock, SemaphoreState)

    def make(spec: SemaphoreSpec, config: MemoryResourceConfig, ctx: Resolver) -> SemaphorePort:
        return Semaphores(MemorySemaphores(server, config, spec), spec, ctx)

    return make


def _rwlocks(
    clock: Callable[[], float],
) -> Callable[[ReadWriteLockSpec, MemoryResourceConfig, Resolver], ReadWriteLockPort]:
    server = MemoryLockServer(clock, LockState)

    def make(
        spec: ReadWriteLockSpec, config: MemoryResourceConfig, ctx: Resolver
    ) -> ReadWriteLockPort:
        resource = f"read/write lock {spec.name!r}"
        locks = MemoryLocks(server, config, spec.name, resource=resource, ttl=spec.ttl)
        return ReadWriteLocks(locks, spec, ctx)

    return make
