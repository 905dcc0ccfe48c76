"""The dependencies module: documents by name, transactions by route, one client."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias, TypeVar

from forze.application.contracts.configs import configured
from forze.application.contracts.deps import DepKey, Factory, Resolver
from forze.application.contracts.document import (
    DocumentSpec,
    DocumentStore,
    DocumentStoreDepKey,
    DocumentStoreFactory,
)
from forze.application.contracts.health import HealthCheck, HealthDepKey
from forze.application.contracts.idempotency import (
    IdempotencyDepKey,
    IdempotencyPort,
    IdempotencySpec,
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
from forze_postgres.idempotency import PostgresIdempotency, PostgresIdempotencyConfig

K = TypeVar("K")

Configs: TypeAlias = Mapping[str, K | Mapping[str, Any]]


class PostgresDepsModule:
    """Documents, transactions and idempotency records of one database.

    ``rw_documents`` and ``ro_documents`` map ``DocumentSpec.name`` to a config or a dict with
    its keys. Every name in ``tx`` is a route of ``ctx.transaction(name)``; all routes of one
    client are the same transactions, so that they join. ``idempotency`` takes one config, which
    answers every name, or configs by ``IdempotencySpec.name``. A runtime with several databases
    gives each module but one a ``name``: its client is registered under that route of
    ``PostgresClientDepKey``. Raises ``ConfigurationError`` for an unknown key, an empty name,
    or one name twice.
    """

    def __init__(
        self,
        *,
        client: PostgresClient,
        rw_documents: Configs[PostgresDocumentConfig] | None = None,
        ro_documents: Configs[PostgresReadOnlyDocumentConfig] | None = None,
        idempotency: PostgresIdempotencyConfig
        | Mapping[str, PostgresIdempotencyConfig | Mapping[str, Any]]
        | Mapping[str, Any]
        | None = None,
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
        self._one, self._several = _records(idempotency)
        self._health = HealthCheck(
            name="postgres" if name is None else f"postgres:{name}", ask=client.health
        )

    def __call__(self) -> Deps:
        """The dependencies."""
        routed: dict[DepKey[Any], Mapping[str, Any]] = {
            DocumentStoreDepKey: {
                name: self._factory(config) for name, config in self._documents.items()
            },
            TransactionDepKey: dict.fromkeys(self._routes, self._client.manager),
            IdempotencyDepKey: {
                name: self._idempotency(config) for name, config in self._several.items()
            },
            HealthDepKey: {f"postgres-{id(self)}": self._health},
        }
        plain: dict[DepKey[Any], Any] = {}
        if self._one is not None:
            plain[IdempotencyDepKey] = self._idempotency(self._one)
        if self._name is None:
            plain[PostgresClientDepKey] = self._client
        else:
            routed[PostgresClientDepKey] = {self._name: self._client}
        return Deps(plain=plain, routed=routed)

    def _idempotency(
        self, config: PostgresIdempotencyConfig
    ) -> Factory[IdempotencySpec, IdempotencyPort]:
        return lambda ctx, spec: PostgresIdempotency(self._client, spec, config, ctx)

    def _factory(self, config: AnyDocumentConfig) -> DocumentStoreFactory:
        def documents(ctx: Resolver, spec: DocumentSpec[Any, Any, Any]) -> DocumentStore[Any]:
            return PostgresDocumentStore(self._client, spec, config)

        return documents


def _records(
    given: PostgresIdempotencyConfig | Mapping[str, Any] | None,
) -> tuple[PostgresIdempotencyConfig | None, dict[str, PostgresIdempotencyConfig]]:
    """One config for every name, or configs by name; a dict with a ``table`` is a config."""
    if given is None:
        return None, {}
    if isinstance(given, Mapping) and not isinstance(given.get("table"), tuple | list):
        return None, _configs(PostgresIdempotencyConfig, given, "idempotency")
    return configured(PostgresIdempotencyConfig, given, "PostgresDepsModule idempotency"), {}


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
