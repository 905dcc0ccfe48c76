"""The dependencies module of the memory backend."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from forze.application.contracts.cache import CacheDepKey, CachePort, CacheSpec
from forze.application.contracts.deps import DepKey, Factory, Resolver
from forze.application.contracts.document import (
    DocumentSpec,
    DocumentStore,
    DocumentStoreDepKey,
)
from forze.application.contracts.transaction import TransactionDepKey
from forze.application.execution.deps import Deps
from forze_memory.cache import MemoryCache
from forze_memory.config import (
    MemoryCacheConfig,
    MemoryDocumentConfig,
    Names,
    configured_all,
    named,
)
from forze_memory.documents import MemoryDocumentStore
from forze_memory.pointers import MemoryCacheServer
from forze_memory.transactions import MemoryDatabase

K = TypeVar("K")
S = TypeVar("S")
P = TypeVar("P")


class MemoryDepsModule:
    """Documents, transactions and caches in process. The data lives in this object.

    Left out, ``documents``, ``caches`` and ``tx`` answer every name; given (names, or configs
    by name) they answer those. Two runtimes over one module share its data as two processes
    share a server, on one event loop. ``clock`` (seconds, monotonic) is what cache entries
    expire by.
    """

    def __init__(
        self,
        *,
        documents: Names[MemoryDocumentConfig] = None,
        caches: Names[MemoryCacheConfig] = None,
        tx: Iterable[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._plain: dict[DepKey[Any], Any] = {}
        self._routed: dict[DepKey[Any], dict[str, Any]] = {}
        database = MemoryDatabase()
        self._server = server = MemoryCacheServer(clock)

        def document(
            config: MemoryDocumentConfig, spec: DocumentSpec[Any, Any, Any], _: Resolver
        ) -> DocumentStore[Any]:
            return MemoryDocumentStore(database, spec, config)

        def cache(config: MemoryCacheConfig, spec: CacheSpec, ctx: Resolver) -> CachePort:
            return MemoryCache(server, spec, config, ctx)

        self._add(DocumentStoreDepKey, "documents", MemoryDocumentConfig, documents, document)
        self._add(CacheDepKey, "caches", MemoryCacheConfig, caches, cache)
        if tx is None:
            self._plain[TransactionDepKey] = database
        else:
            self._routed[TransactionDepKey] = dict.fromkeys(
                named(tx, "MemoryDepsModule tx"), database
            )

    def __call__(self) -> Deps:
        """The dependencies."""
        return Deps(plain=self._plain, routed=self._routed)

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
            self._plain[key] = _factory(make, cls())
        else:
            self._routed[key] = {name: _factory(make, each) for name, each in configs.items()}


def _factory(make: Callable[[K, S, Resolver], P], config: K) -> Factory[S, P]:
    return lambda ctx, spec: make(config, spec, ctx)
