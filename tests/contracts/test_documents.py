"""The batteries of documents and transactions: in memory, and on PostgreSQL with each cache."""

from __future__ import annotations

import pytest

from forze.testing.batteries import (
    DocumentBehaviour,
    DocumentFailures,
    DocumentOutage,
    StoreBehaviour,
    StoreFailures,
    TransactionBehaviour,
    TransactionFailures,
)

SERVERS = ["valkey", "redis7", "valkey_cluster"]
everywhere = pytest.mark.parametrize("cache_server", ["memory", *SERVERS], indirect=True)
databases = pytest.mark.parametrize("cache_server", ["memory", "valkey"], indirect=True)
servers = pytest.mark.parametrize("cache_server", SERVERS, indirect=True)


@databases
class TestStore(StoreBehaviour):
    pass


@databases
class TestStoreFailures(StoreFailures):
    pass


@databases
class TestTransactions(TransactionBehaviour):
    pass


@databases
class TestTransactionFailures(TransactionFailures):
    pass


@everywhere
class TestDocuments(DocumentBehaviour):
    pass


@everywhere
class TestDocumentFailures(DocumentFailures):
    pass


@servers
class TestDocumentOutage(DocumentOutage):
    pass
