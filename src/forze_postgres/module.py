"""The dependencies module: documents by name, transactions by route, one client."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias, TypeVar

from forze.application.contracts.configs import configured
from forze.application.contracts.deps import DepKey, Resolver
from forze.application.contracts.document import (
    DocumentSpec,
    DocumentStore,
    DocumentStoreDepKey,
    DocumentStoreFactory,
)
from forze.application.contracts.transaction import TransactionDepKey
from forze.application.execution.deps import Deps
from forze.errors import ConfigurationError
from forze_postgres.client import PostgresClient, PostgresClientDepKey
from forze_postgres.document import PostgresDocumentStore
from forze_postgres.document_config import (
    AnyDocumentConfig,
    PostgresDocumentConfig,
    PostgresReadOnlyDocumentConfig,
)

K = TypeVar("K")

Configs: TypeAlias = Mapping[str, K | Mapping[str, Any]]


class PostgresDepsModule:
    """Documents and transactions of one database, to be merged into the dependencies.

    ``rw_documents`` and ``ro_documents`` map ``DocumentSpec.name`` to a config or a dict with
    its keys. Every name in ``tx`` is a route of ``ctx.transaction(name)``; all routes of one
    client are the same transactions, so that they join. A runtime with several databases gives
    each module but one a ``name``: its client is registered under that route of
    ``PostgresClientDepKey``. Raises ``ConfigurationError`` for an unknown key, an empty name,
    or one name twice.
    """

    def __init__(
        self,
        *,
        client: PostgresClient,
        rw_documents: Configs[PostgresDocumentConfig] | None = None,
        ro_documents: Configs[PostgresReadOnlyDocumentConfig] | None = None,
        tx: Iterable[str] = (),
        name: str | None = None,
    ) -> None:
        self._name = name
        self._client = client
        rw = _configs(PostgresDocumentConfig, rw_documents or {}, "rw_documents")
        ro = _configs(PostgresReadOnlyDocumentConfig, ro_documents or {}, "ro_documents")
        twice = sorted(rw.keys() & ro.keys())
        if twice:
            raise ConfigurationError(
                f"PostgresDepsModule: {twice[0]!r} is in rw_documents and in ro_documents; "
                "one of them is enough",
                name=twice[0],
            )
        self._documents: dict[str, AnyDocumentConfig] = {**rw, **ro}
        self._routes = _names(tx, "tx")

    def __call__(self) -> Deps:
        """The dependencies."""
        routed: dict[DepKey[Any], Mapping[str, Any]] = {
            DocumentStoreDepKey: {
                name: self._factory(config) for name, config in self._documents.items()
            },
            TransactionDepKey: dict.fromkeys(self._routes, self._client.manager),
        }
        if self._name is None:
            return Deps(plain={PostgresClientDepKey: self._client}, routed=routed)
        return Deps(routed={**routed, PostgresClientDepKey: {self._name: self._client}})

    def _factory(self, config: AnyDocumentConfig) -> DocumentStoreFactory:
        def documents(ctx: Resolver, spec: DocumentSpec[Any, Any, Any]) -> DocumentStore[Any]:
            return PostgresDocumentStore(self._client, spec, config)

        return documents


def _configs(cls: type[K], given: Configs[K], where: str) -> dict[str, K]:
    names = _names(given, where)
    return {
        name: configured(cls, given[name], f"PostgresDepsModule {where}[{name!r}]")
        for name in names
    }


def _names(names: Iterable[str], where: str) -> tuple[str, ...]:
    if isinstance(names, str):
        raise ConfigurationError(
            f"PostgresDepsModule: {where} takes several names, not one text: {{{names!r}}}",
            name=where,
        )
    found: tuple[Any, ...] = tuple(names)
    for each in found:
        if not isinstance(each, str) or not each:
            raise ConfigurationError(
                f"PostgresDepsModule: {where} holds {each!r}; a name is text that is not empty",
                name=where,
            )
    return found
