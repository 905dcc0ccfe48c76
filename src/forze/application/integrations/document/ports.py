"""Binds document specs to their stores and caches, once each, and hands out the ports."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from forze.application.contracts.cache import CachePort, CacheSpec, L1Spec
from forze.application.contracts.deps import Resolver
from forze.application.contracts.document import (
    C,
    DocumentCommandPort,
    DocumentSpec,
    DocumentStore,
    DocumentStoreDepKey,
    R,
    Relations,
    U,
)
from forze.application.contracts.search import (
    SearchResultSnapshotPort,
    SearchResultSnapshotSpec,
)
from forze.application.integrations.document.codec import DocumentCodec
from forze.application.integrations.document.command import DocumentCommand
from forze.application.integrations.document.coordinator import Coordinator
from forze.application.integrations.document.l1.lru import lru_l1_store
from forze.application.integrations.document.l1.store import L1Stats, L1Store
from forze.application.integrations.document.l1.tier import Tier
from forze.application.integrations.document.query import DocumentQuery
from forze.application.integrations.document.telemetry import telemetry_of
from forze.application.integrations.document.writes import Outlet
from forze.errors import ConfigurationError

if TYPE_CHECKING:
    from forze.application.integrations.document.snapshots import SnapshotSearch

_L1_METHODS = ("get", "set", "invalidate", "clear", "stats")

Transact = Callable[[str, Any], Any]


class Bound:
    """One document kind: its spec, store, cache and ports."""

    __slots__ = ("command", "coordinator", "query", "spec", "store")

    def __init__(
        self,
        spec: DocumentSpec[Any, Any, Any],
        store: DocumentStore[Any],
        coordinator: Coordinator[Any, Any] | None,
        snapshots: SnapshotSearch[Any] | None,
    ) -> None:
        self.spec = spec
        self.store = store
        self.coordinator = coordinator
        self.query = DocumentQuery(spec, store, coordinator, snapshots)
        self.command: DocumentCommand[Any, Any, Any] | None = None


class DocumentPorts:
    """Query and command ports by spec; resolving one again is a dictionary lookup."""

    def __init__(
        self,
        resolver: Resolver,
        cache: Callable[[CacheSpec], CachePort],
        snapshot: Callable[[SearchResultSnapshotSpec], SearchResultSnapshotPort],
        transact: Transact,
    ) -> None:
        self._resolver = resolver
        self._cache = cache
        self._snapshot = snapshot
        self._transact = transact
        self._bound: dict[str, Bound] = {}
        self._told: dict[str, tuple[int, list[Outlet]]] = {}

    def query(self, spec: DocumentSpec[R, Any, Any]) -> DocumentQuery[R]:
        """The query port of ``spec``; the same object every time."""
        try:
            bound = self._bound.get(spec.name)
        except AttributeError:
            raise _no_spec(spec) from None
        if bound is None or bound.spec is not spec:
            bound = self._bind(spec)
        return bound.query

    def command(self, spec: DocumentSpec[R, C, U]) -> DocumentCommandPort[R, C, U]:
        """The command port of ``spec``; raises ``ConfigurationError`` if it is read-only."""
        try:
            bound = self._bound.get(spec.name)
        except AttributeError:
            raise _no_spec(spec) from None
        if bound is None or bound.spec is not spec:
            bound = self._bind(spec)
        if bound.command is None:
            bound.command = DocumentCommand(
                bound.spec,
                bound.store,
                self._resolver,
                lambda: self._outlets(bound),
                lambda: self._transact(bound.spec.name, bound.store.manager),
            )
        return cast(DocumentCommandPort[R, C, U], bound.command)

    async def verify(self) -> None:
        """Compare every bound document with its relation; raises ``ConfigurationError``."""
        for bound in self.kinds():
            await bound.store.check()

    def kinds(self) -> tuple[Bound, ...]:
        """Every document kind that was resolved so far."""
        return tuple(self._bound.values())

    def _bind(self, spec: DocumentSpec[Any, Any, Any]) -> Bound:
        bound = self._bound.get(spec.name)
        if bound is not None:
            if bound.spec != spec:
                raise ConfigurationError(
                    f"two different DocumentSpecs have the name {spec.name!r}; "
                    "one name means one spec in a runtime",
                    name=spec.name,
                )
            return bound
        store = self._resolver.provide(DocumentStoreDepKey, spec.name)(self._resolver, spec)
        coordinator, snapshots = self._coordinator(spec, store), self._snapshots(spec, store)
        bound = self._bound[spec.name] = Bound(spec, store, coordinator, snapshots)
        return bound

    def _snapshots(
        self, spec: DocumentSpec[Any, Any, Any], store: DocumentStore[Any]
    ) -> SnapshotSearch[Any] | None:
        if spec.snapshot is None:
            return None
        # Here, so that only those who freeze searches load what it takes.
        from forze.application.integrations.document.snapshots import SnapshotSearch

        port = self._snapshot(spec.snapshot)
        if store.relations.tenant_aware and not port.tenant_aware:
            raise ConfigurationError(
                f"document {spec.name!r} is tenant-aware and its snapshots "
                f"{spec.snapshot.name!r} are not: one tenant could be shown another's search; "
                "set tenant_aware on them too",
                name=spec.name,
            )
        return SnapshotSearch(spec, spec.snapshot, store, port, self._resolver)

    def _coordinator(
        self, spec: DocumentSpec[Any, Any, Any], store: DocumentStore[Any]
    ) -> Coordinator[Any, Any] | None:
        if spec.cache is None:
            return None
        relations = store.relations
        scope = "\0".join((spec.name, *sorted(relations.reads)))
        codec = DocumentCodec(spec.read, scope)
        pointers = self._cache(spec.cache).pointers(codec.fingerprint)
        if pointers.tenant_aware != relations.tenant_aware:
            which = "store" if relations.tenant_aware else "cache"
            raise ConfigurationError(
                f"document {spec.name!r}: its {which} is tenant-aware and the other is not; a "
                "write could not reach every cached copy. Set tenant_aware on both or on none",
                name=spec.name,
            )
        tier = None
        if spec.cache.l1 is not None:
            l1 = spec.cache.l1
            kept = l1_store(f"document {spec.name!r}", l1)
            tier = Tier(kept, codec, ttl=l1.ttl, tenant_aware=pointers.tenant_aware)
        coordinator = Coordinator(
            spec.name, spec.cache, store, pointers, codec, self._resolver, tier
        )
        telemetry = telemetry_of(self._resolver)
        if telemetry is not None:
            telemetry.watch(spec.name, spec.cache, coordinator)
        return coordinator

    def l1_stats(self) -> dict[str, L1Stats]:
        """Counts of the entries kept in this process, by the name of the ``DocumentSpec``."""
        return {
            name: stats
            for name, bound in self._bound.items()
            if (stats := bound.query.l1_stats()) is not None
        }

    def _outlets(self, writer: Bound) -> list[Outlet]:
        """Every cache that holds something of the relations ``writer`` writes to."""
        known = self._told.get(writer.spec.name)
        if known is not None and known[0] == len(self._bound):
            return known[1]
        outlets = [
            outlet
            for reader in self._bound.values()
            if (outlet := _outlet(writer.store.relations, reader)) is not None
        ]
        self._told[writer.spec.name] = (len(self._bound), outlets)
        return outlets


def l1_store(where: str, spec: L1Spec) -> L1Store:
    """The store an :class:`L1Spec` asks for, ``where`` in the error of one that is none."""
    try:
        store = (spec.store_factory or lru_l1_store)(spec)
    except Exception as error:
        raise ConfigurationError(
            f"{where}: L1Spec.store_factory failed ({error!r}); it is called with the "
            "L1Spec and returns an L1Store: pass lru_l1_store or tiny_lfu_l1_store itself",
            name="store_factory",
        ) from error
    missing = [each for each in _L1_METHODS if not callable(getattr(store, each, None))]
    if missing:
        raise ConfigurationError(
            f"{where}: L1Spec.store_factory made {store!r}, which lacks "
            f"{', '.join(missing)}; it must return an L1Store (lru_l1_store, tiny_lfu_l1_store)",
            name="store_factory",
        )
    return cast(L1Store, store)


def _no_spec(given: object) -> ConfigurationError:
    return ConfigurationError(f"documents are asked for by their DocumentSpec, not {given!r}")


def _outlet(writer: Relations, reader: Bound) -> Outlet | None:
    """How a write tells a reader's cache: by ids, by dropping everything, or not at all."""
    relations, coordinator = reader.store.relations, reader.coordinator
    if coordinator is None or relations.ttl_only:
        return None
    shared = writer.writes & (relations.reads | relations.writes | relations.joined)
    if not shared:
        return None
    every_tenant = relations.tenant_aware and not writer.tenant_aware
    if every_tenant and not coordinator.outlet.pointers.one_namespace:
        raise ConfigurationError(
            f"document {reader.spec.name!r} is cached in a namespace per tenant, and a write "
            "without tenants to its relation cannot reach them all; give its cache one namespace "
            "with tenant_aware=True, or make the writer tenant-aware",
            name=reader.spec.name,
        )
    if shared & relations.joined or every_tenant:
        return coordinator.outlet.dropping_all()
    return coordinator.outlet
