"""The dependencies module of the memory backend."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from forze.application.contracts.cache import CacheDepKey, CacheFactory, CachePort, CacheSpec
from forze.application.contracts.deps import DepKey, Resolver
from forze.application.contracts.document import (
    DocumentSpec,
    DocumentStore,
    DocumentStoreDepKey,
    DocumentStoreFactory,
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
        self._documents = configured_all(
            MemoryDocumentConfig, documents, "MemoryDepsModule documents"
        )
        self._caches = configured_all(MemoryCacheConfig, caches, "MemoryDepsModule caches")
        self._routes = None if tx is None else named(tx, "MemoryDepsModule tx")
        self._database = MemoryDatabase()
        self._server = MemoryCacheServer(clock)

    def __call__(self) -> Deps:
        """The dependencies."""
        plain: dict[DepKey[Any], Any] = {}
        routed: dict[DepKey[Any], dict[str, Any]] = {}
        if self._documents is None:
            plain[DocumentStoreDepKey] = self._document_factory(MemoryDocumentConfig())
        else:
            routed[DocumentStoreDepKey] = {
                name: self._document_factory(each) for name, each in self._documents.items()
            }
        if self._caches is None:
            plain[CacheDepKey] = self._cache_factory(MemoryCacheConfig())
        else:
            routed[CacheDepKey] = {
                name: self._cache_factory(each) for name, each in self._caches.items()
            }
        if self._routes is None:
            plain[TransactionDepKey] = self._database
        else:
            routed[TransactionDepKey] = dict.fromkeys(self._routes, self._database)
        return Deps(plain=plain, routed=routed)

    def _document_factory(self, config: MemoryDocumentConfig) -> DocumentStoreFactory:
        def documents(ctx: Resolver, spec: DocumentSpec[Any, Any, Any]) -> DocumentStore[Any]:
            return MemoryDocumentStore(self._database, spec, config)

        return documents

    def _cache_factory(self, config: MemoryCacheConfig) -> CacheFactory:
        def cache(ctx: Resolver, spec: CacheSpec) -> CachePort:
            return MemoryCache(self._server, spec, config, ctx)

        return cache
