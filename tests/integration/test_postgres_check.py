"""Relations are compared with the models: every misfit is named, before the first use."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.integration.postgres_documents import (
    OWN,
    TABLE,
    THING,
    THING_PG,
    ThingRead,
    admin,
    connected,
    store,
)

from forze.application.contracts.cache import CacheSpec
from forze.application.contracts.document import DocumentSpec
from forze.domain.models import Document, ReadDocument
from forze.errors import ConfigurationError
from forze_postgres import PostgresDocumentConfig, PostgresReadOnlyDocumentConfig


class Note(Document):
    text: str


class NoteRead(ReadDocument):
    text: str


NOTE: Any = DocumentSpec(name="notes", read=NoteRead, write={"domain": Note, "create_cmd": Note})
NOTE_PG = PostgresDocumentConfig(read=("public", "note"), write=("public", "note"))


async def test_what_fits_passes(postgres_dsn: str) -> None:
    await admin(postgres_dsn, TABLE)
    async with connected(postgres_dsn) as client:
        await store(client).check()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("DROP TABLE thing", ["public.thing does not exist"]),
        ("ALTER TABLE thing DROP price", ["public.thing.price is missing", "bigint"]),
        (
            "ALTER TABLE thing DROP CONSTRAINT price_not_negative, "
            "ALTER price DROP DEFAULT, ALTER price TYPE text",
            ["public.thing.price is text", "expected bigint"],
        ),
        ("ALTER TABLE thing ALTER extra TYPE text", ["public.thing.extra is text", "jsonb"]),
        (
            "ALTER TABLE thing ALTER seen TYPE timestamp",
            ["public.thing.seen is timestamp without time zone", "timestamptz"],
        ),
        ("ALTER TABLE thing DROP CONSTRAINT thing_pkey", ["public.thing.id is not unique"]),
        ("ALTER TABLE thing ADD must text NOT NULL", ["public.thing.must is NOT NULL"]),
        (
            "ALTER TABLE thing DROP ratio, ALTER secret TYPE bytea USING NULL",
            ["public.thing.ratio is missing", "public.thing.secret is bytea"],
        ),
        (
            "ALTER TABLE thing DROP ready, "
            "ADD ready boolean GENERATED ALWAYS AS (price > 1) STORED",
            ["public.thing.ready is computed"],
        ),
    ],
)
async def test_misfits_are_named(postgres_dsn: str, change: str, says: list[str]) -> None:
    await admin(postgres_dsn, TABLE, change)
    async with connected(postgres_dsn) as client:
        with pytest.raises(ConfigurationError) as caught:
            await store(client).check()
    assert all(each in str(caught.value) for each in says), str(caught.value)
    assert "things" in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE thing ADD must text NOT NULL DEFAULT 'x'",
        "ALTER TABLE thing ADD must bigint GENERATED ALWAYS AS IDENTITY NOT NULL",
        "ALTER TABLE thing ALTER price TYPE int",
        "ALTER TABLE thing ALTER name TYPE varchar(20)",
        "ALTER TABLE thing DROP CONSTRAINT thing_pkey; CREATE UNIQUE INDEX ON thing (id) "
        "INCLUDE (rev)",
    ],
)
async def test_what_does_no_harm_passes(postgres_dsn: str, change: str) -> None:
    await admin(postgres_dsn, TABLE, change)
    async with connected(postgres_dsn) as client:
        await store(client).check()


@pytest.mark.parametrize("kind", ["mood", "strong", "varchar(9)"])
async def test_enums_and_domains_hold_text(postgres_dsn: str, kind: str) -> None:
    await admin(
        postgres_dsn,
        "CREATE TYPE mood AS ENUM ('sad', 'glad', 'mad')",
        "CREATE DOMAIN word AS text",
        "CREATE DOMAIN strong AS word CHECK (value <> 'sad')",
        f"CREATE TABLE note ({OWN}, text {kind})",
    )
    async with connected(postgres_dsn) as client:
        notes = store(client, NOTE, NOTE_PG)
        note = Note(text="glad")
        await notes.insert([note, Note(text="glad")])
        assert await notes.count({"text": "glad"}) == 2
        assert await notes.count({"text": {"in": ["glad", "mad"]}}) == 2
        assert await notes.count({"text": {"starts_with": "gl"}}) == 2
        assert (await notes.update(note.id, 1, {"text": "glad"})).rev == 1
        assert (await notes.update(note.id, 1, {"text": "mad"})).rev == 2
        page = await notes.find({}, ["text"], 1, ["glad", note.id])
        assert len(page.items) + page.more >= 1


async def test_a_domain_over_an_enum_cannot_be_compared(postgres_dsn: str) -> None:
    await admin(
        postgres_dsn,
        "CREATE TYPE mood AS ENUM ('sad', 'glad')",
        "CREATE DOMAIN feeling AS mood",
        f"CREATE TABLE note ({OWN}, text feeling)",
    )
    async with connected(postgres_dsn) as client:
        with pytest.raises(ConfigurationError, match="text is feeling"):
            await store(client, NOTE, NOTE_PG).check()


@pytest.mark.parametrize("index", ["(id) WHERE rev > 0", "(id, rev)", "(lower(id::text))"])
async def test_only_a_whole_key_is_unique(postgres_dsn: str, index: str) -> None:
    await admin(
        postgres_dsn,
        TABLE,
        "ALTER TABLE thing DROP CONSTRAINT thing_pkey",
        f"CREATE UNIQUE INDEX ON thing {index}",
    )
    async with connected(postgres_dsn) as client:
        with pytest.raises(ConfigurationError, match="not unique"):
            await store(client).check()


async def test_tenant_columns(postgres_dsn: str) -> None:
    await admin(postgres_dsn, TABLE)
    config = PostgresDocumentConfig(
        read=("public", "thing"), write=("public", "thing"), tenant_aware=True
    )
    async with connected(postgres_dsn) as client:
        with pytest.raises(ConfigurationError, match=r"public\.thing\.tenant_id is missing"):
            await store(client, THING, config).check()
        await admin(postgres_dsn, "ALTER TABLE thing ADD tenant_id int NOT NULL")
        with pytest.raises(ConfigurationError, match=r"tenant_id is integer"):
            await store(client, THING, config).check()
        await admin(postgres_dsn, "ALTER TABLE thing ALTER tenant_id TYPE text")
        await store(client, THING, config).check()


async def test_a_cached_view_names_its_tables(postgres_dsn: str) -> None:
    await admin(
        postgres_dsn,
        TABLE,
        "CREATE TABLE owner (id uuid PRIMARY KEY, who text)",
        "CREATE VIEW inner_view AS SELECT thing.*, who FROM thing LEFT JOIN owner USING (id)",
        "CREATE VIEW shown AS SELECT * FROM inner_view",
    )
    cached: Any = DocumentSpec(name="things", read=ThingRead, cache=CacheSpec(name="things"))
    plain: Any = DocumentSpec(name="things", read=ThingRead)
    read = ("public", "shown")
    only = PostgresReadOnlyDocumentConfig
    async with connected(postgres_dsn) as client:
        with pytest.raises(ConfigurationError, match=r"public\.owner, public\.thing"):
            await store(client, cached, only(read=read)).check()
        with pytest.raises(ConfigurationError, match=r"view of public\.owner, and"):
            config = PostgresDocumentConfig(read=read, write=("public", "thing"))
            await store(client, cached, config).check()
        named = only(read=read, invalidated_by=("public.owner", ("public", "thing")))
        await store(client, cached, named).check()
        await store(client, cached, only(read=read, ttl_only=True)).check()
        await store(client, plain, only(read=read)).check()
        await admin(postgres_dsn, "CREATE MATERIALIZED VIEW kept AS SELECT * FROM thing")
        kept = ("public", "kept")
        with pytest.raises(ConfigurationError, match="materialized"):
            config_kept = only(read=kept, invalidated_by=("public.thing",))
            await store(client, cached, config_kept).check()
        with pytest.raises(ConfigurationError, match="not a table"):
            await store(client, THING, PostgresDocumentConfig(read=read, write=read)).check()


async def test_the_first_use_checks_once(postgres_dsn: str) -> None:
    async with connected(postgres_dsn, max_size=5) as client:
        things = store(client)
        with pytest.raises(ConfigurationError, match="does not exist"):
            await things.count({})
        await admin(postgres_dsn, TABLE)
        checks = 0
        whole = things.check

        async def counted() -> None:
            nonlocal checks
            checks += 1
            await whole()

        things.check = counted  # type: ignore[method-assign]
        assert await asyncio.gather(*(things.count({}) for _ in range(20))) == [0] * 20
        assert checks == 1


async def test_a_table_altered_later_is_told(postgres_dsn: str) -> None:
    await admin(postgres_dsn, TABLE)
    async with connected(postgres_dsn) as client:
        things = store(client, THING, THING_PG)
        assert await things.count({"name": "x"}) == 0
        await admin(postgres_dsn, "ALTER TABLE thing RENAME name TO title")
        with pytest.raises(ConfigurationError, match="name"):
            await things.count({"name": "x"})


async def test_one_query(postgres_dsn: str) -> None:
    await admin(postgres_dsn, TABLE)
    async with connected(postgres_dsn) as client:
        pool = await client.pool()
        connection = await pool.acquire()
        seen: list[str] = []
        connection.add_query_logger(lambda record: seen.append(record.query))
        pool.release(connection)
        await store(client).check()
        await asyncio.sleep(0)  # the driver logs one turn later
        assert len(seen) == 1
