"""Binds cached functions to the caches of a runtime, once each.

A bound function reads through the coordinator that documents are read through
(``document.coordinator``): the call is the id, running the function is the source.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, Final, Generic, Protocol, TypeVar, cast

from forze.application.contracts.cache import CachePort, CacheSpec, CacheTags
from forze.application.contracts.deps import Resolver
from forze.application.contracts.tenancy import (
    bind_exactly,
    current_principal,
    current_tenant,
)
from forze.application.contracts.transaction import OPEN, in_transaction
from forze.application.integrations.cached.tags import TaggedPointers, invalidated
from forze.application.integrations.cached.tier import CallTier
from forze.application.integrations.cached.values import Answer, Unshared
from forze.application.integrations.document.codec import Codec
from forze.application.integrations.document.coordinator import Coordinator
from forze.application.integrations.document.l1.store import L1Stats
from forze.application.integrations.document.ports import l1_store
from forze.application.integrations.document.stats import CacheStats
from forze.application.integrations.document.telemetry import telemetry_of
from forze.errors import ConfigurationError

T = TypeVar("T")

_RUNNING: Final[ContextVar[frozenset[tuple[str, str | None]]]] = ContextVar(
    "forze_cached_calls", default=frozenset()
)
"""The calls (key and tenant) that are being run for whoever runs here."""


class Key(str):
    """The key of a call, which knows its tags."""

    __slots__ = ("tags",)

    tags: tuple[str, ...]


class Call(Generic[T]):
    """One call of a cached function: its key, and how to run it for whoever shares it."""

    __slots__ = ("_gone", "_key", "_running", "_within", "principal", "run", "tenant")

    def __init__(
        self,
        key: str,
        tags: tuple[str, ...],
        run: Callable[[], Any],
        *,
        tenant: str | None,
        principal: str | None,
    ) -> None:
        self._key = key
        if tags:
            self._key = tagged = Key(key)
            tagged.tags = tags
        self.run = run
        self.tenant = tenant
        self.principal = principal
        self._within = _RUNNING.get()
        self._running: asyncio.Task[Any] | None = None
        self._gone = False

    def __str__(self) -> str:
        return self._key

    @property
    def nested(self) -> bool:
        """Whether it was made while the same call was being run, by what that runs."""
        return bool(self._within) and (self._key, self.tenant) in self._within

    async def answer(self) -> Answer[T]:
        """Run the function, under the tenant and principal that its key holds, no others."""
        if self._gone:
            raise asyncio.CancelledError
        self._running = asyncio.current_task()
        within = _RUNNING.set(self._within | {(self._key, self.tenant)})
        try:
            with bind_exactly(self.tenant, self.principal):
                return Answer(await self.run())
        finally:
            _RUNNING.reset(within)
            self._running = None

    def abandon(self) -> None:
        """Its caller is gone, and with it what was lent to the call: end what runs with it.

        Whoever else waits for it begins anew, with what is its own.
        """
        self._gone = True
        if self._running is not None and self._running is not asyncio.current_task():
            self._running.cancel()


class Function(Protocol[T]):
    """What is bound: a cached function, as its decorator describes it."""

    @property
    def name(self) -> str:
        """Unique in a runtime, and part of every key."""
        ...

    @property
    def cache(self) -> CacheSpec:
        """The cache it is kept in, with its own ``ttl``."""
        ...

    @property
    def spec(self) -> CacheSpec:
        """The cache as it is registered."""
        ...

    @property
    def codec(self) -> Codec[Answer[T]]:
        """How its values become bodies."""
        ...

    @property
    def tagged(self) -> bool:
        """Whether its calls may carry tags."""
        ...

    @property
    def lends(self) -> bool:
        """Whether calls are made with arguments that are no part of the key, and may be gone
        when their caller is."""
        ...

    @property
    def tenants_apart(self) -> bool:
        """Whether the bound tenant is part of the key where the cache does not see to it."""
        ...

    @property
    def principals_apart(self) -> bool:
        """Whether the bound principal is part of the key."""
        ...


class _Runs(Generic[T]):
    """Running the function, as the source of its values."""

    async def fetch(
        self, ids: Sequence[Call[T]], *, for_update: bool = False
    ) -> Mapping[Call[T], Answer[T]]:
        return {each: await each.answer() for each in ids}


class BoundFunction(Generic[T]):
    """A cached function in one runtime."""

    def __init__(self, function: Function[T], tags: CacheTags, resolver: Resolver) -> None:
        spec = function.cache
        if function.lends:  # what is lent is gone once its caller is answered
            spec = replace(spec, early_refresh_background=False)
        self.function = function
        self._resolver = resolver
        pointers = tags.pointers
        self.tenant_aware = pointers.tenant_aware
        """Whether the cache keeps tenants apart."""
        tier = None
        if spec.l1 is not None:
            tier = CallTier(l1_store(function.name, spec.l1), function.codec, ttl=spec.l1.ttl)
        self.tier = tier
        self.coordinator: Coordinator[Answer[T], Call[T]] = Coordinator(
            function.name,
            spec,
            _Runs(),
            TaggedPointers(pointers, tags, spec.ttl) if function.tagged else pointers,
            function.codec,
            resolver,
            tier,
        )
        telemetry = telemetry_of(resolver)
        if telemetry is not None:
            telemetry.watch(function.name, spec, self.coordinator)

    def tenant(self) -> str | None:
        """The tenant that a call made now depends on."""
        apart = self.tenant_aware or self.function.tenants_apart
        return current_tenant() if apart else None

    def principal(self) -> str | None:
        """The principal that a call made now depends on."""
        return current_principal() if self.function.principals_apart else None

    async def get(self, call: Call[T]) -> T:
        """The value, never older than an invalidation acknowledged before this began."""
        tier = self.tier
        if tier is not None and not (OPEN.get() and in_transaction()):
            kept = tier.get(self.coordinator.address(call))
            if kept is not None:
                return cast(T, kept.value)
        if call.nested and self.coordinator.loading(self.coordinator.address(call)):
            raise ConfigurationError(
                f"cached function {self.function.name} called itself with the same arguments "
                "(perhaps by way of others), and would wait for itself for ever",
                name=self.function.name,
            )
        try:
            return (await self.coordinator.get(call)).value
        except Unshared as error:
            if error.owner is call:
                raise
            return (await call.answer()).value
        finally:
            if self.function.lends:
                call.abandon()

    async def invalidate(self, call: Call[T]) -> None:
        """No value whose load began before is served once this has returned."""
        coordinator = self.coordinator
        await invalidated(coordinator.outlet, (coordinator.address(call),), self._resolver)

    def stats(self) -> CacheStats:
        """What the cache did for this function in this process."""
        return self.coordinator.stats()

    def l1_stats(self) -> L1Stats | None:
        """Counts of the entries kept in this process; None without an L1."""
        return None if self.tier is None else self.tier.store.stats()


class FunctionCaches:
    """The cached functions of one runtime; binding one again is a dictionary lookup."""

    def __init__(self, resolver: Resolver, cache: Callable[[CacheSpec], CachePort]) -> None:
        self._resolver = resolver
        self._cache = cache
        self._bound: dict[str, BoundFunction[Any]] = {}

    def of(self, function: Function[T]) -> BoundFunction[T]:
        """The function in this runtime; the same object every time."""
        bound = self._bound.get(function.name)
        if bound is None or bound.function is not function:
            return self._bind(function)
        return bound

    def bound(self) -> tuple[BoundFunction[Any], ...]:
        """Every function that was called, or declared, so far."""
        return tuple(self._bound.values())

    def l1_stats(self) -> dict[str, L1Stats]:
        """Counts of the entries kept in this process, by the name of the function."""
        return {
            name: stats
            for name, bound in self._bound.items()
            if (stats := bound.l1_stats()) is not None
        }

    def _bind(self, function: Function[T]) -> BoundFunction[T]:
        if function.name in self._bound:
            raise ConfigurationError(
                f"two cached functions have the name {function.name!r}; their values would be "
                "taken for each other's: give one of them name=",
                name=function.name,
            )
        tags = self._cache(function.spec).tags()
        bound = self._bound[function.name] = BoundFunction(function, tags, self._resolver)
        return bound


def with_ttl(spec: CacheSpec, ttl: Any, where: str) -> CacheSpec:
    """``spec`` for values that live for ``ttl``; raises ``ConfigurationError``."""
    if spec.age_ttl is not None:
        raise ConfigurationError(
            f"{where}: age_ttl of {spec.name!r} needs to know since when a value is as it is, "
            "and values of functions do not tell; use another CacheSpec",
            name="age_ttl",
        )
    return spec if ttl is None else replace(spec, ttl=ttl, ttl_pointer=None)
