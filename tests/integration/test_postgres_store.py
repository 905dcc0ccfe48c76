"""The document store on a real server: fields come back equal, writes are exact, pages complete."""

from __future__ import annotations

import asyncio
from datetime import datetime
from itertools import product
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from tests.integration.postgres_documents import (
    OWN,
    TABLE,
    THING,
    THING_PG,
    Thing,
    ThingRead,
    admin,
    connected,
    full,
    store,
)

from forze.application.contracts.document import DocumentSpec, DocumentWriteTypes
from forze.application.contracts.tenancy import bind_tenant
from forze.domain.models import BaseDTO, CreateDocumentCmd, Document, ReadDocument
from forze.errors import (
    BackendCorrupt,
    ConfigurationError,
    ConflictError,
    NotFoundError,
    RevisionMismatch,
    TenantRequired,
    ValidationError,
)
from forze_postgres import PostgresDocumentConfig


async def _ask(dsn: str, sql: str, *arguments: Any) -> Any:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(sql, *arguments)
    finally:
        await connection.close()


async def test_every_field_comes_back_equal(postgres_dsn: str) -> None:
    await admin(postgres_dsn, TABLE)
    thing, bare = full(), Thing(name="bare")
    async with connected(postgres_dsn) as client:
        things = store(client)
        written = await things.insert([thing, bare])
        read = await things.fetch([thing.id, bare.id])
        for model, origin in zip(written, (thing, bare), strict=True):
            assert read[origin.id] == model
            for name in Thing.model_fields:
                ours, theirs = getattr(model, name), getattr(origin, name)
                assert ours == theirs, name
                assert type(ours) is type(theirs), name
    assert await _ask(postgres_dsn, "SELECT secret FROM thing WHERE name = 'all'") == "s3cret"
    assert await _ask(postgres_dsn, "SELECT size FROM thing WHERE name = 'all'") == 2


async def test_what_would_not_come_back_is_refused(postgres_dsn: str) -> None:
    await admin(postgres_dsn, TABLE)
    async with connected(postgres_dsn) as client:
        for each in (
            Thing(name="x", extra={"x": [float("nan")]}),
            Thing(name="x", extra={"x": "a\0b"}),
            Thing(name="a\0b"),
            Thing(name="x", seen=datetime(2024, 1, 1)),
            Thing(name="x", price=2**63),
            Thing(name="x", price=-1),
        ):
            with pytest.raises(ValidationError):
                await store(client).insert([Thing(name="before"), each])
        assert await store(client).count({}) == 0, "all or none"


async def test_a_row_that_does_not_fit_is_corrupt_and_named(postgres_dsn: str) -> None:
    await admin(postgres_dsn, TABLE)
    thing = Thing(name="x")
    async with connected(postgres_dsn) as client:
        await store(client).insert([thing])
        await admin(postgres_dsn, """UPDATE thing SET parts = '[{"code": 1}]'""")
        with pytest.raises(BackendCorrupt, match=str(thing.id)):
            await store(client).fetch([thing.id])


async def test_a_duplicate_id_is_a_conflict_that_names_it(postgres_dsn: str) -> None:
    await admin(postgres_dsn, TABLE)
    thing = Thing(name="x")
    async with connected(postgres_dsn) as client:
        await store(client).insert([thing])
        for batch in ([thing], [Thing(name="y"), thing]):
            with pytest.raises(ConflictError, match=str(thing.id)) as caught:
                await store(client).insert(batch)
            assert caught.value.resource == "things"
        assert await store(client).count({}) == 1


async def test_an_update_that_changes_nothing_writes_nothing(postgres_dsn: str) -> None:
    await admin(postgres_dsn, TABLE)
    thing = full()
    async with connected(postgres_dsn) as client:
        things = store(client)
        await things.insert([thing])
        before = await _ask(postgres_dsn, "SELECT xmin::text || ctid::text FROM thing")
        every = {
            name: getattr(thing, name)
            for name in Thing.model_fields
            if name not in ("id", "rev", "created_at", "last_update_at")
        }
        for values in (every, {}, {"name": thing.name}):
            same = await things.update(thing.id, 1, values)
            assert (same.rev, same.last_update_at) == (1, thing.last_update_at)
        assert await things.update_matching({}, {"price": thing.price}) == []
        assert await _ask(postgres_dsn, "SELECT xmin::text || ctid::text FROM thing") == before


async def test_an_update_writes_what_differs_null_included(postgres_dsn: str) -> None:
    await admin(postgres_dsn, TABLE)
    thing = full()
    async with connected(postgres_dsn) as client:
        things = store(client)
        await things.insert([thing])
        changed = await things.update(thing.id, 1, {"amount": None, "extra": {"k": 1}})
        assert (changed.rev, changed.amount, changed.extra) == (2, None, {"k": 1})
        assert changed.last_update_at > thing.last_update_at
        assert changed.name == thing.name
        assert (await things.update(thing.id, 2, {"amount": thing.amount})).rev == 3


async def test_a_stale_rev_carries_the_current_one(postgres_dsn: str) -> None:
    await admin(postgres_dsn, TABLE)
    thing = Thing(name="x")
    async with connected(postgres_dsn) as client:
        things = store(client)
        await things.insert([thing])
        await things.update(thing.id, 1, {"price": 5})
        for values in ({"price": 6}, {"price": 5}, {}):
            with pytest.raises(RevisionMismatch) as caught:
                await things.update(thing.id, 1, values)
            assert (caught.value.expected, caught.value.current) == (1, 2)
        with pytest.raises(NotFoundError):
            await things.update(uuid4(), 1, {"price": 6})


@pytest.mark.parametrize("field", ["rev", "id", "created_at", "nonsense"])
async def test_an_update_cannot_set(postgres_dsn: str, field: str) -> None:
    await admin(postgres_dsn, TABLE)
    async with connected(postgres_dsn) as client:
        with pytest.raises(ValidationError) as caught:
            await store(client).update(uuid4(), 1, {field: 1})
        assert caught.value.field == field


async def test_two_writers_of_one_rev(postgres_dsn: str) -> None:
    await admin(postgres_dsn, TABLE)
    thing = Thing(name="x")
    async with connected(postgres_dsn, max_size=8) as client:
        things = store(client)
        await things.insert([thing])
        ended = await asyncio.gather(
            *(things.update(thing.id, 1, {"price": n}) for n in range(1, 9)),
            return_exceptions=True,
        )
        assert sum(isinstance(each, ThingRead) for each in ended) == 1
        assert sum(isinstance(each, RevisionMismatch) for each in ended) == 7


async def test_pages_with_missing_values_in_every_direction(postgres_dsn: str) -> None:
    await admin(postgres_dsn, TABLE)
    values = [None, None, None, *range(4), *range(4)]
    rows = [
        Thing(name=str(number % 3), size=None if number % 4 == 0 else 1 + number % 2, ratio=value)
        for number, value in enumerate(values)
    ]
    async with connected(postgres_dsn) as client:
        things = store(client)
        await things.insert(rows)
        for one, two, three in product(("ratio", "-ratio"), ("name", "-name"), ("id", "-id")):
            for sort in ([one, two, three], [two, one, three], ["size", one, three], [three]):
                whole = (await things.find({}, sort, 100, None)).items
                assert sorted(each.id for each in whole) == sorted(each.id for each in rows)
                keys = [each.lstrip("-") for each in sort]
                first = keys[0]
                missing = [getattr(each, first) is None for each in whole]
                assert missing == sorted(missing), "missing values come last"
                seen: list[UUID] = []
                after = None
                while True:
                    page = await things.find({}, sort, 2, after)
                    seen += [each.id for each in page.items]
                    if not page.more:
                        break
                    after = [getattr(page.items[-1], key) for key in keys]
                assert seen == [each.id for each in whole], sort


async def test_every_operator(postgres_dsn: str) -> None:
    await admin(postgres_dsn, TABLE)
    rows = [
        Thing(name="100%", price=1, amount=None, other=uuid4()),
        Thing(name="100 per_cent", price=2, amount=1),
        Thing(name=r"back\slash", price=3, amount=2, extra={"a": [1]}, colour="red"),
    ]
    async with connected(postgres_dsn) as client:
        things = store(client)
        await things.insert(rows)

        async def prices(filters: Any) -> list[int]:
            found = (await things.find(filters, ["price"], 10, None)).items
            assert await things.count(filters) == len(found)
            return [each.price for each in found]

        assert await prices({}) == [1, 2, 3]
        assert await prices({"name": {"contains": "%"}}) == [1]
        assert await prices({"name": {"contains": "_"}}) == [2]
        assert await prices({"name": {"contains": "\\"}}) == [3]
        assert await prices({"name": {"contains": "PER"}}) == []
        assert await prices({"name": {"starts_with": "100"}}) == [1, 2]
        assert await prices({"name": {"starts_with": "00"}}) == []
        assert await prices({"colour": {"starts_with": "re"}}) == [3]
        assert await prices({"amount": {"ne": 1}}) == [1, 3]
        assert await prices({"amount": {"not_in": [1]}}) == [1, 3]
        assert await prices({"amount": {"in": ["1.0", 2]}}) == [2, 3]
        assert await prices({"amount": {"gte": 1, "lt": 2}}) == [2]
        assert await prices({"amount": None}) == [1]
        assert await prices({"amount": {"is_null": False}}) == [2, 3]
        assert await prices({"price": {"in": []}}) == []
        assert await prices({"price": {"not_in": []}}) == [1, 2, 3]
        assert await prices({"id": {"in": [str(rows[0].id), rows[2].id]}}) == [1, 3]
        assert await prices({"other": rows[0].other}) == [1]
        assert await prices({"extra": {"eq": {"a": [1]}}}) == [3]
        assert await prices({"colour": "red", "price": {"gt": 3}}) == []
        assert await prices({"created_at": {"lte": rows[0].created_at}}) == [1]


async def test_writes_by_filter(postgres_dsn: str) -> None:
    await admin(postgres_dsn, TABLE)
    rows = [Thing(name="x", price=price) for price in range(6)]
    async with connected(postgres_dsn) as client:
        things = store(client)
        await things.insert(rows)
        changed = await things.update_matching({"price": {"gte": 3}}, {"name": "y", "price": 5})
        assert set(changed) == {each.id for each in rows[3:]}
        assert await things.update_matching({"name": "y"}, {"price": 5}) == []
        gone = await things.delete_matching({"name": "y"})
        assert set(gone) == set(changed)
        assert {type(each) for each in gone} == {UUID}
        assert await things.delete([rows[0].id, rows[0].id, gone[0]]) == [rows[0].id]
        assert await things.count({}) == 2
        touched = await things.touch(rows[1].id)
        assert (touched.rev, touched.price) == (2, 1)
        with pytest.raises(NotFoundError):
            await things.touch(rows[0].id)


def _odd_names() -> tuple[Any, Any, str]:
    strange = 'na"me; DROP TABLE thing; --'
    fields: dict[str, Any] = {"__annotations__": {strange: str}, "__module__": __name__}
    domain = type("OddThing", (Document,), dict(fields))
    read = type("OddRead", (ReadDocument,), dict(fields))
    create = type("OddCreate", (CreateDocumentCmd,), dict(fields))
    types: Any = DocumentWriteTypes(domain=domain, create_cmd=create, update_cmd=BaseDTO)
    return DocumentSpec(name="odd", read=read, write=types), domain, strange


async def test_names_and_values_with_quotes(postgres_dsn: str) -> None:
    spec, domain, strange = _odd_names()
    column = strange.replace('"', '""')
    await admin(
        postgres_dsn,
        TABLE,
        'CREATE SCHEMA "sch""ema.x"',
        f'CREATE TABLE "sch""ema.x"."ta""ble %" ({OWN}, "{column}" text)',
    )
    place = ('sch"ema.x', 'ta"ble %')
    config = PostgresDocumentConfig(read=place, write=place)
    async with connected(postgres_dsn) as client:
        odd = store(client, spec, config)
        value = "'; DROP TABLE thing; -- $1 \" \\ %s"
        one = domain(**{strange: value})
        await odd.insert([one])
        assert getattr((await odd.fetch([one.id]))[one.id], strange) == value
        assert await odd.count({strange: {"starts_with": "'; DROP"}}) == 1
        page = await odd.find({strange: {"in": [value]}}, ["-" + strange], 5, None)
        assert len(page.items) == 1
        changed = await odd.update(one.id, 1, {strange: value * 2})
        assert getattr(changed, strange) == value * 2
        assert await odd.update_matching({strange: {"contains": "'"}}, {strange: "x"}) == [one.id]
    assert await _ask(postgres_dsn, "SELECT count(*) FROM thing") == 0


@pytest.mark.parametrize("kind", ["uuid", "text"])
async def test_tenants_are_confined(postgres_dsn: str, kind: str) -> None:
    await admin(postgres_dsn, TABLE, f"ALTER TABLE thing ADD tenant_id {kind} NOT NULL")
    config = PostgresDocumentConfig(
        read=("public", "thing"), write=("public", "thing"), tenant_aware=True
    )
    ours, theirs = uuid4(), uuid4()
    mine, other = Thing(name="mine"), Thing(name="other")
    async with connected(postgres_dsn) as client:
        things = store(client, THING, config)
        assert things.relations.tenant_aware
        with bind_tenant(ours):
            await things.insert([mine])
        with bind_tenant(theirs):
            await things.insert([other])
            assert await things.fetch([mine.id, other.id]) == {
                other.id: (await things.fetch([other.id]))[other.id]
            }
            assert await things.fetch([mine.id], for_update=True) == {}
            assert [each.id for each in (await things.find({}, [], 9, None)).items] == [other.id]
            after = [mine.id]
            assert [e.id for e in (await things.find({}, [], 9, after)).items] == [other.id]
            assert await things.count({"id": mine.id}) == 0
            for attempt in (
                things.update(mine.id, 1, {"name": "stolen"}),
                things.update(mine.id, 1, {}),
                things.touch(mine.id),
            ):
                with pytest.raises(NotFoundError):
                    await attempt
            assert await things.delete([mine.id]) == []
            assert await things.update_matching({}, {"name": "all"}) == [other.id]
            assert await things.delete_matching({}) == [other.id]
            with pytest.raises(ConflictError):
                await things.insert([mine])
            with pytest.raises(ValidationError):
                await things.update(mine.id, 1, {"tenant_id": str(theirs)})
        with bind_tenant(ours):
            assert (await things.fetch([mine.id]))[mine.id].name == "mine"
        with pytest.raises(TenantRequired):
            await things.fetch([mine.id])
        with pytest.raises(TenantRequired):
            await things.insert([Thing(name="nobody's")])
    assert await _ask(postgres_dsn, "SELECT tenant_id::text FROM thing") == str(ours)


async def test_read_from_a_view_what_was_written(postgres_dsn: str) -> None:
    await admin(
        postgres_dsn,
        TABLE,
        "CREATE VIEW shown AS SELECT id, rev, created_at, last_update_at, upper(name) AS name, "
        "price, length(name) AS letters FROM thing WHERE price < 100",
    )

    class Shown(ReadDocument):
        name: str
        letters: int

    spec = DocumentSpec(name="things", read=Shown, write=THING.write)
    config = PostgresDocumentConfig(read=("public", "shown"), write=("public", "thing"))
    async with connected(postgres_dsn) as client:
        things = store(client, spec, config)
        one = Thing(name="one")
        assert [each.name for each in await things.insert([one, Thing(name="two")])] == [
            "ONE",
            "TWO",
        ]
        assert (await things.update(one.id, 1, {"name": "three"})).letters == 5
        assert (await things.update(one.id, 2, {"name": "three"})).rev == 2
        assert (await things.touch(one.id)).rev == 3
        assert (await things.fetch([one.id], for_update=True))[one.id].name == "THREE"
        assert await things.update_matching({"name": "three"}, {"price": 1}) == [one.id]
        with pytest.raises(ValidationError, match="letters"):
            await things.delete_matching({"letters": 5})
        with pytest.raises(NotFoundError, match="written"):
            await things.update(one.id, 4, {"price": 100})
    assert await _ask(postgres_dsn, "SELECT price FROM thing WHERE id = $1", one.id) == 100


async def test_a_read_only_document_refuses_writes(postgres_dsn: str) -> None:
    await admin(postgres_dsn, TABLE)
    async with connected(postgres_dsn) as client:
        things = store(client, DocumentSpec(name="things", read=ThingRead), THING_PG)
        for attempt in (
            things.insert([Thing(name="x")]),
            things.update(uuid4(), 1, {}),
            things.touch(uuid4()),
            things.delete([uuid4()]),
            things.delete_matching({}),
            things.update_matching({}, {}),
            things.domain(uuid4()),
        ):
            with pytest.raises(ConfigurationError, match="read-only"):
                await attempt
        assert await things.fetch([]) == {}
