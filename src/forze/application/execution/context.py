"""The execution context: one per running process, through which every port is reached.

Ports are bound once and remembered: resolving one again is a dictionary lookup. What
differs per request (tenant, principal, deadline, transaction) is in context variables.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from contextvars import Context
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from forze.application.contracts import tenancy
from forze.application.contracts.cache import CACHED, CacheDepKey, CachePort, CacheSpec
from forze.application.contracts.counter import CounterDepKey, CounterPort, CounterSpec
from forze.application.contracts.deps import DepKey, Factory, Named, Verified
from forze.application.contracts.dlock import (
    DistributedLockDepKey,
    DistributedLockPort,
    DistributedLockSpec,
    LockScope,
    ReadWriteLockDepKey,
    ReadWriteLockPort,
    ReadWriteLockSpec,
    SemaphoreDepKey,
    SemaphorePort,
    SemaphoreSpec,
)
from forze.application.contracts.document import DocumentSpec
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
from forze.application.contracts.transaction import (
    IsolationLevel,
    Transaction,
    TransactionDepKey,
    TransactionManager,
)
from forze.application.execution.background import Background
from forze.application.execution.deps import Deps
from forze.application.execution.transaction import transaction_scope
from forze.application.integrations.document.l1.store import L1Stats
from forze.application.integrations.document.ports import DocumentPorts
from forze.errors import ConfigurationError

if TYPE_CHECKING:
    from forze.application.contracts.resilience import ResiliencePort
    from forze.application.integrations.cached.ports import FunctionCaches

T = TypeVar("T")
S = TypeVar("S", bound=Named)
P = TypeVar("P")


class ExecutionContext:
    """Every port of a running application, by spec.

    Unknown names raise :class:`ConfigurationError` with the names that are registered. Two
    different specs of one kind under one name do too.
    """

    def __init__(self, deps: Deps) -> None:
        self._deps = deps
        self._background = Background()
        self._ports: dict[tuple[DepKey[Any], str], tuple[Any, Any]] = {}
        self.document = DocumentPorts(self, self.cache, self.search_snapshot, self._transact)
        self.doc_query = self.document.query
        self.doc_command = self.document.command
        self._bind: dict[type, Callable[[Any], object]] = {
            DocumentSpec: self.document.query,
            CacheSpec: self.cache,
            CounterSpec: self.counter,
            DistributedLockSpec: self.dlock,
            SemaphoreSpec: self.semaphore,
            ReadWriteLockSpec: self.rwlock,
            IdempotencySpec: self.idempotency,
            SearchResultSnapshotSpec: self.search_snapshot,
        }

    # -- ports ---------------------------------------------------------------

    def cache(self, spec: CacheSpec | None) -> CachePort:
        """The cache registered under ``spec.name``, for direct use."""
        if spec is None:
            raise ConfigurationError(
                "ctx.cache() was given None: this DocumentSpec has no cache; "
                "add cache=CacheSpec(name=...) to it"
            )
        return self._port(CacheDepKey, CacheSpec, spec)

    @cached_property
    def functions(self) -> FunctionCaches:
        """The cached functions of the runtime."""
        # Here, so that only those who cache functions load what it takes.
        from forze.application.integrations.cached.ports import FunctionCaches

        return FunctionCaches(self, self.cache)

    async def invalidate_tags(self, *tags: str, cache: CacheSpec = CACHED) -> None:
        """Invalidate every cached call in ``cache`` that carries one of these tags.

        Once it has returned, no value whose load began before is served. In a transaction it
        takes effect at commit. One round trip.
        """
        await self.cache(cache).invalidate_tags(*tags)

    def counter(self, spec: CounterSpec) -> CounterPort:
        """The counters registered under ``spec.name``."""
        return self._port(CounterDepKey, CounterSpec, spec)

    def dlock(self, spec: DistributedLockSpec) -> DistributedLockPort:
        """The locks registered under ``spec.name``."""
        return self._port(DistributedLockDepKey, DistributedLockSpec, spec)

    def dlock_scope(self, spec: DistributedLockSpec) -> LockScope:
        """The same locks as blocks: ``async with ctx.dlock_scope(spec).scope(key) as lock``."""
        return self.dlock(spec)

    def semaphore(self, spec: SemaphoreSpec) -> SemaphorePort:
        """The semaphores registered under ``spec.name``."""
        return self._port(SemaphoreDepKey, SemaphoreSpec, spec)

    def rwlock(self, spec: ReadWriteLockSpec) -> ReadWriteLockPort:
        """The read/write locks registered under ``spec.name``."""
        return self._port(ReadWriteLockDepKey, ReadWriteLockSpec, spec)

    def idempotency(self, spec: IdempotencySpec) -> IdempotencyPort:
        """The idempotency records registered under ``spec.name``, or for every name."""
        return self._port(IdempotencyDepKey, IdempotencySpec, spec)

    def search_snapshot(self, spec: SearchResultSnapshotSpec) -> SearchResultSnapshotPort:
        """The search-result snapshots registered under ``spec.name``."""
        return self._port(SearchResultSnapshotDepKey, SearchResultSnapshotSpec, spec)

    @cached_property
    def resilience(self) -> ResiliencePort:
        """Runs calls under the policies that ``ResilienceDepsModule`` registered."""
        from forze.application.contracts.resilience import ResilienceDepKey

        if not self.exists(ResilienceDepKey):
            raise ConfigurationError(
                "no policies are registered; add ResilienceDepsModule(policies={...}) to the "
                "modules of the runtime",
                name=ResilienceDepKey.name,
            )
        return self.provide(ResilienceDepKey)(self)

    def transaction(
        self,
        route: str,
        *,
        isolation: IsolationLevel | None = None,
        read_only: bool = False,
    ) -> AbstractAsyncContextManager[Transaction]:
        """A block that commits at its end and rolls back when left by an exception.

        Blocks on one database nest by joining. Raises ``ConfigurationError`` when no
        database registered ``route`` with ``tx=``.
        """
        manager = self.provide(TransactionDepKey, route)
        return transaction_scope(self, route, manager, isolation=isolation, read_only=read_only)

    def _port(self, key: DepKey[Factory[S, P]], kind: type[S], spec: S) -> P:
        """The port of ``spec``, made once; what is registered under ``spec.name`` makes it."""
        if not isinstance(spec, kind):
            raise ConfigurationError(f"ctx.{key.name}() takes a {kind.__name__}, not {spec!r}")
        known = self._ports.get((key, spec.name))
        if known is None:
            known = spec, self.provide(key, spec.name)(self, spec)
            self._ports[key, spec.name] = known
        elif known[0] is not spec and known[0] != spec:
            raise ConfigurationError(
                f"two different {kind.__name__}s have the name {spec.name!r}; "
                "one name means one spec in a runtime",
                name=spec.name,
            )
        return known[1]

    def _transact(
        self, route: str, manager: TransactionManager
    ) -> AbstractAsyncContextManager[Transaction]:
        return transaction_scope(self, route, manager)

    def l1_stats(self) -> dict[str, L1Stats]:
        """Counts of every in-process tier, by the name of its ``DocumentSpec`` or function."""
        functions = self.__dict__.get("functions")
        return self.document.l1_stats() | (functions.l1_stats() if functions else {})

    # -- per request ---------------------------------------------------------

    def bind_tenant(self, tenant: UUID | str) -> AbstractContextManager[None]:
        """Bind a tenant to the current task for the length of a ``with`` block."""
        return tenancy.bind_tenant(tenant)

    def bind_principal(self, principal: UUID | str) -> AbstractContextManager[None]:
        """Bind a principal to the current task for the length of a ``with`` block."""
        return tenancy.bind_principal(principal)

    def bind_deadline(self, within: timedelta) -> AbstractContextManager[None]:
        """Bound every wait of the current task for the length of a ``with`` block."""
        return tenancy.bind_deadline(within)

    # -- wiring --------------------------------------------------------------

    def provide(self, key: DepKey[T], route: str | None = None) -> T:
        """What is registered under ``key`` (and ``route``)."""
        return self._deps.provide(key, route)

    def exists(self, key: DepKey[Any], route: str | None = None) -> bool:
        """Whether something is registered under ``key`` (and ``route``)."""
        return self._deps.exists(key, route)

    def registered(self, kind: type[T]) -> list[tuple[str, T]]:
        """Everything registered that is a ``kind``, each once, with the name it has there."""
        return self._deps.of(kind)

    def ports(self) -> list[tuple[Any, Any]]:
        """Each spec that was resolved so far and its port; documents are ``document.kinds()``."""
        return list(self._ports.values())

    def spawn(
        self,
        work: Coroutine[Any, Any, T],
        *,
        name: str,
        context: Context | None = None,
        wait: bool = True,
    ) -> asyncio.Task[T]:
        """Run ``work`` apart from any request; shutdown waits for it, or else cancels it."""
        return self._background.spawn(work, name=name, context=context, wait=wait)

    def bind(self, spec: object) -> None:
        """Resolve every port of ``spec`` now, so that wrong wiring fails here."""
        binder = self._bind.get(type(spec))
        if binder is None:
            raise ConfigurationError(f"specs= takes specs, not {spec!r}")
        binder(spec)

    async def verify(self) -> None:
        """Compare what is bound with its relations; raises ``ConfigurationError``."""
        await self.document.verify()
        for _, port in tuple(self._ports.values()):
            if isinstance(port, Verified):
                await port.verify()

    async def close(self, within: timedelta) -> None:
        """Wait for background work up to ``within``, then cancel what is left."""
        await self._background.drain(within)
