"""Configs of the PostgreSQL adapter refuse nonsense by name, and the module wires by name."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from tests.integration.postgres_documents import THING, ThingRead

from forze.application.contracts.document import DocumentSpec, DocumentStoreDepKey
from forze.application.contracts.transaction import TransactionDepKey
from forze.application.execution import Deps
from forze.errors import ConfigurationError
from forze_postgres import (
    PostgresClient,
    PostgresClientDepKey,
    PostgresConfig,
    PostgresDepsModule,
    PostgresDocumentConfig,
    PostgresReadOnlyDocumentConfig,
)
from forze_postgres.transaction import begin_sql

PLACE = ("public", "thing")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_size", 0),
        ("max_size", 1),  # below the default min_size
        ("max_size", 2.5),
        ("max_size", True),
        ("min_size", -1),
        ("statement_timeout", 8),
        ("statement_timeout", timedelta(seconds=9)),
        ("statement_timeout", 0),
        ("acquire_timeout", -1),
        ("connect_timeout", float("inf")),
        ("connect_timeout", float("nan")),
        ("transaction_timeout", "60"),
        ("idle_in_transaction_timeout", True),
        ("application_name", "a\0b"),
        ("statement_cache_size", -1),
    ],
)
def test_nonsense_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        PostgresConfig(**{name: value})
    assert "PostgresConfig" in str(caught.value)
    assert caught.value.name in (name, "min_size")


def test_durations_are_timedeltas_or_seconds() -> None:
    for value in (2.5, timedelta(seconds=2, milliseconds=500)):
        assert PostgresConfig(statement_timeout=value).milliseconds("statement_timeout") == "2500"
    with pytest.raises(AttributeError):
        PostgresConfig().max_size = 3  # type: ignore[misc]


def test_begin_sets_what_the_server_knows() -> None:
    config = PostgresConfig(idle_in_transaction_timeout=2, transaction_timeout=30)
    old = begin_sql(config, 16, None, False)
    new = begin_sql(config, 17, "serializable", True)
    assert old == "BEGIN; SET LOCAL idle_in_transaction_session_timeout = 2000"
    assert new == (
        "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY; "
        "SET LOCAL idle_in_transaction_session_timeout = 2000; "
        "SET LOCAL transaction_timeout = 30000"
    )


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"read": PLACE, "write": PLACE, "writes": PLACE}, "writes"),
        ({"read": PLACE}, "write"),
        ({"read": ("", "thing"), "write": PLACE}, "read"),
        ({"read": "public.thing", "write": PLACE}, "read"),
        ({"read": ("public", "x" * 64), "write": PLACE}, "read"),
        ({"read": ("public", "x\0"), "write": PLACE}, "read"),
        ({"read": PLACE, "write": PLACE, "tenant_aware": "yes"}, "tenant_aware"),
        ({"read": PLACE, "write": PLACE, "invalidated_by": "public.other"}, "invalidated_by"),
        ({"read": PLACE, "write": PLACE, "invalidated_by": ("other",)}, "invalidated_by"),
        (PLACE, "things"),
    ],
)
def test_a_config_is_refused_by_the_name_of_what_is_wrong(config: Any, says: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        PostgresDepsModule(client=PostgresClient(), rw_documents={"things": config})
    assert says in str(caught.value)


def test_invalidated_by_takes_text_and_pairs() -> None:
    config = PostgresReadOnlyDocumentConfig(
        read=PLACE, invalidated_by=("public.a", ("public", "b"))
    )
    assert config.invalidating == {"public.a", "public.b"}


@pytest.mark.parametrize("tx", ["products", [""], [3]])
def test_routes_are_names(tx: Any) -> None:
    with pytest.raises(ConfigurationError, match="tx"):
        PostgresDepsModule(client=PostgresClient(), tx=tx)


def test_one_name_in_both_lists_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="'things'"):
        PostgresDepsModule(
            client=PostgresClient(),
            rw_documents={"things": {"read": PLACE, "write": PLACE}},
            ro_documents={"things": {"read": PLACE}},
        )


def test_everything_of_one_client_shares_its_manager() -> None:
    client = PostgresClient()
    deps = PostgresDepsModule(
        client=client,
        rw_documents={"things": {"read": list(PLACE), "write": PLACE}},
        ro_documents={"views": PostgresReadOnlyDocumentConfig(read=PLACE)},
        tx=(name for name in ("a", "b")),
    )()
    assert isinstance(deps, Deps)
    assert deps.provide(PostgresClientDepKey) is client
    resolver: Any = deps
    view: DocumentSpec[Any, Any, Any] = DocumentSpec(name="views", read=ThingRead)
    stores = [
        deps.provide(DocumentStoreDepKey, spec.name)(resolver, spec) for spec in (THING, view)
    ]
    managers = [
        *(each.manager for each in stores),
        *(deps.provide(TransactionDepKey, n) for n in "ab"),
    ]
    assert all(each is client.manager for each in managers)
    assert stores[0].relations.writes == {"public.thing"}
    assert stores[1].relations.writes == frozenset()


def test_a_writable_spec_needs_a_writable_config() -> None:
    deps = PostgresDepsModule(client=PostgresClient(), ro_documents={"things": {"read": PLACE}})()
    resolver: Any = deps
    with pytest.raises(ConfigurationError, match="rw_documents"):
        deps.provide(DocumentStoreDepKey, "things")(resolver, THING)


def test_relations_name_everything_that_is_read() -> None:
    config = PostgresDocumentConfig(
        read=("public", "view"), write=PLACE, invalidated_by=("public.owner",), ttl_only=True
    )
    deps = PostgresDepsModule(client=PostgresClient(), rw_documents={"things": config})()
    resolver: Any = deps
    relations = deps.provide(DocumentStoreDepKey, "things")(resolver, THING).relations
    assert relations.reads == {"public.view", "public.thing", "public.owner"}
    assert relations.ttl_only
