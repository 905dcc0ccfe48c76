"""What the document ports do end to end: the read-through over a store and a cache."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from forze.application.contracts.document import DocumentSpec, DocumentUpdate
from forze.application.execution import ExecutionContext
from forze.errors import (
    BackendTimeout,
    BackendUnavailable,
    ConfigurationError,
    ConflictError,
    NotFoundError,
    RevisionMismatch,
    TenantRequired,
    ValidationError,
)
from forze.testing.batteries.items import (
    ITEMS,
    OWNED_ITEMS,
    SUMMARIES,
    Details,
    ItemCreate,
    ItemRead,
    ItemUpdate,
)
from forze.testing.batteries.legs import PATIENCE, Calls, DocumentLeg, Outage, apart, waits
from forze.testing.batteries.refusals import refused
from forze.testing.batteries.transactions import Command, Query


def _ports(ctx: ExecutionContext) -> tuple[Query, Command]:
    return ctx.document.query(ITEMS), ctx.document.command(ITEMS)


def _create(price: int = 1, **values: Any) -> ItemCreate:
    return ItemCreate(name=f"item {price}", price=price, **values)


async def _cached(ctx: ExecutionContext, item_id: UUID) -> Any:
    """The entry of the cache, as a user of the cache port sees it."""
    return await ctx.cache(ITEMS.cache).get(str(item_id))


class DocumentBehaviour:
    """Every call of both ports, and what it leaves in the cache."""

    async def test_the_story(self, document_leg: DocumentLeg) -> None:
        query, command = _ports(document_leg.ctx)
        elsewhere, _ = _ports(document_leg.other)
        item = await command.create(_create(10))
        assert await _cached(document_leg.ctx, item.id) is None, "create fills nothing"
        assert await query.get(item.id) == item
        body = await _cached(document_leg.ctx, item.id)
        assert body["id"] == str(item.id)
        assert body["price"] == 10
        assert await elsewhere.get(str(item.id)) == item
        updated = await command.update(item.id, item.rev, ItemUpdate(price=12))
        assert (updated.rev, updated.price, updated.name) == (2, 12, item.name)
        assert await _cached(document_leg.ctx, item.id) is None, "update invalidates"
        assert await elsewhere.get(item.id) == updated
        assert await query.get(item.id) == updated
        await command.kill(item.id)
        assert await _cached(document_leg.ctx, item.id) is None
        for each in (query, elsewhere):
            with refused(NotFoundError, str(item.id)):
                await each.get(item.id)

    async def test_a_created_document_has_all_it_was_given(self, document_leg: DocumentLeg) -> None:
        query, command = _ports(document_leg.ctx)
        cmd = _create(
            note="\u2028 é 世界 '\"\\",
            tags=["a/b", "%", "{}"],
            details=Details(colour="red", sizes=[3]),
            released_at=datetime(2024, 5, 6, 7, 8, 9, 123_456, tzinfo=UTC),
        )
        item = await command.create(cmd)
        assert {**item.model_dump(), "id": None} == {
            **cmd.model_dump(),
            "rev": 1,
            "created_at": item.created_at,
            "last_update_at": item.last_update_at,
        }
        assert item.id.version == 7
        assert abs(datetime.now(UTC) - item.created_at) < timedelta(minutes=1)
        assert await query.get(item.id) == item, "from the source"
        assert await query.get(item.id) == item, "from the cache"

    async def test_an_id_may_be_given(self, document_leg: DocumentLeg) -> None:
        query, command = _ports(document_leg.ctx)
        mine = uuid4()
        with refused(NotFoundError):
            await query.get(mine)
        item = await command.create(_create(id=mine))
        assert item.id == mine
        assert await query.get(mine) == item
        await command.kill(mine)
        again = await command.create(_create(2, id=mine))
        for ctx in (document_leg.ctx, document_leg.other):
            assert await _ports(ctx)[0].get(mine) == again

    async def test_create_many_is_all_or_none(self, document_leg: DocumentLeg) -> None:
        query, command = _ports(document_leg.ctx)
        items = await command.create_many([_create(number) for number in range(5)])
        assert [each.price for each in items] == [0, 1, 2, 3, 4]
        with refused(ConflictError, str(items[2].id)):
            await command.create_many([_create(9), _create(9, id=items[2].id)])
        assert await query.count() == 5
        assert await command.create_many([]) == []

    async def test_only_fields_that_were_set_are_written(self, document_leg: DocumentLeg) -> None:
        query, command = _ports(document_leg.ctx)
        item = await command.create(_create(note="n", tags=["t"]))
        updated = await command.update(item.id, 1, ItemUpdate(note=None))
        assert (updated.note, updated.tags, updated.price, updated.rev) == (None, ["t"], 1, 2)
        same = await command.update(item.id, 2, ItemUpdate(tags=["t"], price=1))
        assert same == updated
        assert await command.update(item.id, 2, ItemUpdate()) == updated
        assert await query.get(item.id) == updated

    async def test_get_many_keeps_order_and_duplicates(self, document_leg: DocumentLeg) -> None:
        query, command = _ports(document_leg.ctx)
        items = await command.create_many([_create(number) for number in range(250)])
        await query.get_many([each.id for each in items[::3]])
        asked = [*items[::-1], items[7], items[0]]
        for each in (query, _ports(document_leg.other)[0]):
            assert await each.get_many([item.id for item in asked]) == asked
            assert await each.get_many([str(item.id) for item in asked]) == asked
        assert await query.get_many([]) == []

    async def test_get_many_of_what_is_not_there(self, document_leg: DocumentLeg) -> None:
        query, command = _ports(document_leg.ctx)
        item, nobody = await command.create(_create()), uuid4()
        for _ in range(2):
            with refused(NotFoundError, str(nobody)) as caught:
                await query.get_many([item.id, nobody])
            assert caught.error.ids == (str(nobody),)
            found = await query.get_many([nobody, item.id, nobody, item.id], missing="skip")
            assert found == [item, item]

    async def test_what_is_handed_out_is_the_callers_own(self, document_leg: DocumentLeg) -> None:
        query, command = _ports(document_leg.ctx)
        item = await command.create(_create(tags=["a"]))
        copies = await asyncio.gather(*(query.get(item.id) for _ in range(10)))
        copies[0].tags.append("changed")
        assert all(each.tags == ["a"] for each in copies[1:])
        twice = await query.get_many([item.id, item.id])
        assert twice[0].tags == ["a"]
        assert (await query.get(item.id)).tags == ["a"]

    async def test_find_many_pages_through(self, document_leg: DocumentLeg) -> None:
        query, command = _ports(document_leg.ctx)
        await command.create_many(
            [_create(number % 4, note=None if number % 3 else "n") for number in range(11)]
        )
        found: list[ItemRead] = []
        after = None
        while True:
            page = await query.find_many(
                {"price": {"lt": 3}}, sort=["-note", "price"], limit=3, after=after
            )
            found += page.items
            after = page.next_cursor
            if after is None:
                break
        expected = sorted(found, key=lambda each: (each.note is None, each.price, each.id))
        assert found == expected
        assert len({each.id for each in found}) == len(found) == 9
        assert (await query.find_many({"price": 99})).items == []

    async def test_count_and_exists(self, document_leg: DocumentLeg) -> None:
        query, command = _ports(document_leg.ctx)
        items = await command.create_many([_create(number) for number in range(3)])
        assert await query.count() == 3
        assert await query.count({"price": {"gte": 1}}) == 2
        assert await query.exists(items[0].id) is True
        assert await query.exists(str(items[0].id)) is True
        await command.kill(items[0].id)
        assert await query.exists(items[0].id) is False

    async def test_touch(self, document_leg: DocumentLeg) -> None:
        query, command = _ports(document_leg.ctx)
        item = await command.create(_create())
        await query.get(item.id)
        touched = await command.touch(item.id)
        assert (touched.rev, touched.price) == (2, 1)
        assert touched.last_update_at >= item.last_update_at
        assert await _ports(document_leg.other)[0].get(item.id) == touched

    async def test_update_many_is_all_or_none(self, document_leg: DocumentLeg) -> None:
        query, command = _ports(document_leg.ctx)
        items = await command.create_many([_create(number) for number in range(4)])
        ids = [each.id for each in items]
        await query.get_many(ids)
        updated = await command.update_many(
            [
                DocumentUpdate(items[2].id, 1, ItemUpdate(price=20)),
                (str(items[0].id), 1, ItemUpdate(price=30)),
            ]
        )
        assert [(each.id, each.price, each.rev) for each in updated] == [
            (items[2].id, 20, 2),
            (items[0].id, 30, 2),
        ]
        with refused(RevisionMismatch, str(items[0].id)):
            await command.update_many(
                [(items[1].id, 1, ItemUpdate(price=99)), (items[0].id, 1, ItemUpdate(price=99))]
            )
        for each in (query, _ports(document_leg.other)[0]):
            assert [item.price for item in await each.get_many(ids)] == [30, 1, 20, 3]
        assert await command.update_many([]) == []

    async def test_update_matching_invalidates_each(self, document_leg: DocumentLeg) -> None:
        query, command = _ports(document_leg.ctx)
        elsewhere, _ = _ports(document_leg.other)
        items = await command.create_many([_create(number) for number in range(5)])
        ids = [each.id for each in items]
        await query.get_many(ids)
        assert await command.update_matching({"price": {"gte": 3}}, ItemUpdate(price=4)) == 1
        assert [each.price for each in await elsewhere.get_many(ids)] == [0, 1, 2, 4, 4]
        assert await _cached(document_leg.ctx, ids[0]) is not None, "not touched, still cached"
        assert [each.rev for each in await query.get_many(ids)] == [1, 1, 1, 2, 1]

    async def test_kill_many_and_matching(self, document_leg: DocumentLeg) -> None:
        query, command = _ports(document_leg.ctx)
        elsewhere, _ = _ports(document_leg.other)
        items = await command.create_many([_create(number) for number in range(6)])
        ids = [each.id for each in items]
        await elsewhere.get_many(ids)
        assert await command.kill_many([ids[0], uuid4(), str(ids[1]), ids[0]]) == 2
        assert await command.kill_matching({"price": {"gte": 5}}) == 1
        assert await command.kill_matching({"price": 99}) == 0
        assert await command.kill_many([]) == 0
        for each in (query, elsewhere):
            assert await each.get_many(ids, missing="skip") == items[2:5]

    async def test_too_many_matches_are_refused_before_the_commit(
        self, document_leg: DocumentLeg
    ) -> None:
        query, command = _ports(document_leg.ctx)
        items = await command.create_many([_create(number) for number in range(4)])
        ids = [each.id for each in items]
        await query.get_many(ids)
        calls: Calls = (
            lambda: command.update_matching({}, ItemUpdate(note="n"), max_intents=3),
            lambda: command.kill_matching({}, max_intents=3),
        )
        for call in calls:
            with refused(ConflictError, "4", "max_intents", "namespace"):
                await call()
        assert await query.get_many(ids) == items
        changed = await command.update_matching(
            {}, ItemUpdate(note="n"), max_intents=3, invalidate="namespace"
        )
        assert changed == 4
        for each in (query, _ports(document_leg.other)[0]):
            assert {item.note for item in await each.get_many(ids)} == {"n"}
        assert await command.kill_matching({}, max_intents=3, invalidate="namespace") == 4
        assert await query.get_many(ids, missing="skip") == []

    async def test_skip_cache_reads_the_source_and_fills_nothing(
        self, document_leg: DocumentLeg
    ) -> None:
        query, command = _ports(document_leg.ctx)
        item = await command.create(_create())
        assert await query.get(item.id, skip_cache=True) == item
        assert await query.get(item.id, for_update=True) == item
        assert await query.get_many([item.id], skip_cache=True) == [item]
        assert await _cached(document_leg.ctx, item.id) is None

    async def test_reads_in_a_transaction_fill_nothing(self, document_leg: DocumentLeg) -> None:
        query, command = _ports(document_leg.ctx)
        item = await command.create(_create())
        async with document_leg.ctx.transaction("items"):
            assert await query.get(item.id) == item
            assert await query.get_many([item.id]) == [item]
        assert await _cached(document_leg.ctx, item.id) is None

    async def test_a_write_reaches_every_spec_over_the_relation(
        self, document_leg: DocumentLeg
    ) -> None:
        ctx, (query, command) = document_leg.ctx, _ports(document_leg.ctx)
        summaries = ctx.document.query(SUMMARIES)
        elsewhere = document_leg.other.document.query(SUMMARIES)
        item = await command.create(_create())
        assert (await summaries.get(item.id)).name == "item 1"
        assert (await elsewhere.get(item.id)).name == "item 1"
        await query.get(item.id)
        await command.update(item.id, 1, ItemUpdate(name="renamed"))
        for each in (summaries, elsewhere):
            assert (await each.get(item.id)).name == "renamed"
        await command.kill(item.id)
        for each in (summaries, elsewhere):
            with refused(NotFoundError):
                await each.get(item.id)

    async def test_concurrent_misses_are_one_load(self, document_leg: DocumentLeg) -> None:
        ctx, (query, command) = document_leg.ctx, _ports(document_leg.ctx)
        item = await command.create(_create())
        documents = ctx.document.query(ITEMS)
        before = documents.stats()
        assert before is not None
        found = await asyncio.gather(*(query.get(item.id) for _ in range(50)))
        assert found == [item] * 50
        after = documents.stats()
        assert after is not None
        assert after.source_reads - before.source_reads == 1
        await query.get(item.id)
        hit = documents.stats()
        assert hit is not None
        assert (hit.source_reads, hit.hits) == (after.source_reads, after.hits + 1)

    async def test_tenants_are_apart(self, document_leg: DocumentLeg) -> None:
        ctx = document_leg.ctx
        query, command = ctx.document.query(OWNED_ITEMS), ctx.document.command(OWNED_ITEMS)
        with ctx.bind_tenant("a"):
            item = await command.create(_create(1))
            assert await query.get(item.id) == item
            assert await query.get(item.id) == item
        with ctx.bind_tenant("b"):
            with refused(NotFoundError):
                await query.get(item.id)
            with refused(NotFoundError):
                await command.update(item.id, 1, ItemUpdate(price=2))
            with refused(NotFoundError):
                await command.kill(item.id)
            assert await query.get_many([item.id], missing="skip") == []
            assert await query.count() == 0
        with ctx.bind_tenant("a"):
            assert await query.get(item.id) == item
            assert await asyncio.gather(*(query.get(item.id) for _ in range(2))) == [item, item]

    async def test_resolving_twice_is_the_same_port(self, document_leg: DocumentLeg) -> None:
        ctx = document_leg.ctx
        assert ctx.document.query(ITEMS) is ctx.doc_query(ITEMS)
        assert ctx.document.command(ITEMS) is ctx.doc_command(ITEMS)
        twin = DocumentSpec(name="items", read=ItemRead, write=ITEMS.write, cache=ITEMS.cache)
        assert ctx.document.query(twin) is ctx.document.query(ITEMS)


class DocumentFailures:
    """What is refused, what a refusal leaves behind, callers that go away."""

    async def test_an_unknown_id(self, document_leg: DocumentLeg) -> None:
        query, command = _ports(document_leg.ctx)
        nobody = uuid4()
        for call in (
            lambda: query.get(nobody),
            lambda: query.get(str(nobody)),
            lambda: query.get(nobody, for_update=True),
            lambda: query.get(nobody, skip_cache=True),
            lambda: query.get_many([nobody]),
            lambda: command.update(nobody, 1, ItemUpdate(price=1)),
            lambda: command.update_many([(nobody, 1, ItemUpdate(price=1))]),
            lambda: command.touch(nobody),
            lambda: command.kill(nobody),
        ):
            with refused(NotFoundError, "items", str(nobody)):
                await call()

    async def test_no_lease_is_left_by_a_miss_of_nothing(self, document_leg: DocumentLeg) -> None:
        query, command = _ports(document_leg.ctx)
        mine = uuid4()
        with refused(NotFoundError):
            await query.get(mine)
        with refused(NotFoundError):
            await query.get_many([mine])
        item = await command.create(_create(id=mine))
        async with asyncio.timeout(1):  # a lease left behind would hold readers up for 3 s
            assert await _ports(document_leg.other)[0].get(mine) == item

    async def test_what_is_no_id(self, document_leg: DocumentLeg) -> None:
        query, command = _ports(document_leg.ctx)
        for wrong in ("", "nope", "a/b", "%", "{}", " ", "ключ", 7, None, b"x"):
            bad: Any = wrong
            for call in (
                lambda bad=bad: query.get(bad),
                lambda bad=bad: query.get_many([bad]),
                lambda bad=bad: query.exists(bad),
                lambda bad=bad: command.update(bad, 1, ItemUpdate(price=1)),
                lambda bad=bad: command.touch(bad),
                lambda bad=bad: command.kill(bad),
                lambda bad=bad: command.kill_many([bad]),
            ):
                with refused(ValidationError, "UUID"):
                    await call()

    async def test_a_duplicate_id(self, document_leg: DocumentLeg) -> None:
        query, command = _ports(document_leg.ctx)
        item = await command.create(_create())
        await query.get(item.id)
        with refused(ConflictError, "items", str(item.id)):
            await command.create(_create(2, id=item.id))
        for ctx in (document_leg.ctx, document_leg.other):
            assert await _ports(ctx)[0].get(item.id) == item

    async def test_a_stale_rev(self, document_leg: DocumentLeg) -> None:
        query, command = _ports(document_leg.ctx)
        item = await command.create(_create())
        current = await command.update(item.id, 1, ItemUpdate(price=2))
        await query.get(item.id)
        with refused(RevisionMismatch, "rev 1", "2", str(item.id)) as caught:
            await command.update(item.id, 1, ItemUpdate(price=3))
        assert (caught.error.expected, caught.error.current) == (1, 2)
        assert isinstance(caught.error, ConflictError)
        assert await query.get(item.id) == current

    async def test_what_an_update_cannot_set(self, document_leg: DocumentLeg) -> None:
        query, command = _ports(document_leg.ctx)
        item = await command.create(_create())

        class Wrong(ItemUpdate):
            rev: int = 1
            price: Any = None
            nope: int = 1

        for dto, word in (
            (Wrong(rev=7), "rev"),
            (Wrong(nope=7), "nope"),
            (Wrong(price="many"), "price"),
            (Wrong(price=None), "price"),
        ):
            with refused(ValidationError, word) as caught:
                await command.update(item.id, 1, dto)
            assert caught.error.field == word
        strangers: tuple[Any, ...] = ({"price": 2}, None, "price")
        for stranger in strangers:
            with refused(ValidationError, "ItemUpdate"):
                await command.update(item.id, 1, stranger)
            with refused(ValidationError, "ItemCreate"):
                await command.create(stranger)
        with refused(ValidationError, "twice"):
            await command.update_many([(item.id, 1, ItemUpdate()), (item.id, 1, ItemUpdate())])
        assert await query.get(item.id) == item

    async def test_what_cannot_be_asked(self, document_leg: DocumentLeg) -> None:
        query, command = _ports(document_leg.ctx)
        await command.create_many([_create(number) for number in range(3)])
        page = await query.find_many(sort=["price"], limit=1)
        assert page.next_cursor is not None
        for limit in (0, -1, 1001):
            with refused(ValidationError, "limit"):
                await query.find_many(limit=limit)
        for after in ("nope", "", "!!", page.next_cursor[:-3], "bnVsbA=="):
            with refused(ValidationError, "cursor"):
                await query.find_many(sort=["price"], after=after)
        for sort in (["-price"], ["name"], []):
            with refused(ValidationError, "cursor"):
                await query.find_many(sort=sort, after=page.next_cursor)
        with refused(ValidationError, "nope"):
            await query.find_many({"nope": 1})
        with refused(ValidationError, "nope"):
            await query.find_many(sort=["nope"])
        with refused(ValidationError, "nope"):
            await command.kill_matching({"nope": 1})
        assert await query.count() == 3

    async def test_no_tenant_is_an_error(self, document_leg: DocumentLeg) -> None:
        ctx = document_leg.ctx
        query, command = ctx.document.query(OWNED_ITEMS), ctx.document.command(OWNED_ITEMS)
        for call in (
            lambda: query.get(uuid4()),
            lambda: query.get_many([uuid4()]),
            query.find_many,
            query.count,
            lambda: command.create(_create()),
            lambda: command.touch(uuid4()),
            lambda: command.kill_matching({}),
        ):
            with refused(TenantRequired, "owned_items", "bind_tenant"):
                await call()

    async def test_a_read_only_document_has_no_commands(self, document_leg: DocumentLeg) -> None:
        with refused(ConfigurationError, "summaries", "write="):
            document_leg.ctx.document.command(SUMMARIES)

    async def test_two_specs_of_one_name(self, document_leg: DocumentLeg) -> None:
        document_leg.ctx.document.query(ITEMS)
        other: DocumentSpec[ItemRead, Any, Any] = DocumentSpec(name="items", read=ItemRead)
        with refused(ConfigurationError, "items"):
            document_leg.ctx.document.query(other)

    async def test_a_cancelled_reader_harms_no_other(self, document_leg: DocumentLeg) -> None:
        query, command = _ports(document_leg.ctx)
        elsewhere, _ = _ports(document_leg.other)
        for turns in range(12):
            item = await command.create(_create())
            readers = [apart(_get(query, item.id)) for _ in range(4)]
            for _ in range(turns):
                await asyncio.sleep(0)
            readers[0].cancel()
            async with asyncio.timeout(1):
                assert await asyncio.gather(*readers[1:]) == [item] * 3
                assert await elsewhere.get(item.id) == item

    async def test_a_cancelled_writer_leaves_nothing_half_done(
        self, document_leg: DocumentLeg
    ) -> None:
        query, command = _ports(document_leg.ctx)
        elsewhere, _ = _ports(document_leg.other)
        for turns in range(12):
            item = await command.create(_create())
            await query.get(item.id)
            writer = apart(_update(command, item.id, 5))
            for _ in range(turns):
                await asyncio.sleep(0)
            writer.cancel()
            await asyncio.wait({writer})
            touched = await command.touch(item.id)
            assert (await elsewhere.get(item.id)) == touched
            assert (touched.rev, touched.price) in ((2, 1), (3, 5))

    async def test_a_reader_beside_a_slow_write(self, document_leg: DocumentLeg) -> None:
        query, command = _ports(document_leg.ctx)
        elsewhere, others = _ports(document_leg.other)
        item = await command.create(_create())
        await query.get(item.id)
        async with document_leg.other.transaction("items"):
            await elsewhere.get(item.id, for_update=True)
            late = apart(_update(command, item.id, 5))
            assert await waits(late)
            assert await apart(_get(query, item.id)) == item
            assert await _cached(document_leg.ctx, item.id) is None, "read beside a write: not kept"
        assert (await late).price == 5
        for each in (query, elsewhere):
            assert (await each.get(item.id)).price == 5
        assert (await others.touch(item.id)).rev == 3


class DocumentOutage:
    """Reads and writes while the cache server is away. For backends that have one."""

    async def test_reads_and_writes_go_on(self, document_leg: DocumentLeg, outage: Outage) -> None:
        query, command = _ports(document_leg.ctx)
        item = await command.create(_create())
        await query.get(item.id)
        await outage.break_backend()
        async with asyncio.timeout(5):
            assert await query.get(item.id) == item
            updated = await command.update(item.id, 1, ItemUpdate(price=2))
            assert await query.get(item.id) == updated
            assert await query.get_many([item.id]) == [updated]
        await outage.restore()
        async with asyncio.timeout(PATIENCE.total_seconds()):
            while await _cached_or_away(document_leg, item.id) is None:
                assert await query.get(item.id) == updated
                await asyncio.sleep(0.02)
        assert await query.get(item.id) == updated
        assert await _ports(document_leg.other)[0].get(item.id) == updated


async def _cached_or_away(leg: DocumentLeg, item_id: UUID) -> Any:
    """The entry, None as well where the cache is away: of several servers each by itself."""
    hits = leg.ctx.document.query(ITEMS).stats()
    if hits is None or not hits.available:
        return None
    try:
        return await _cached(leg.ctx, item_id)
    except (BackendTimeout, BackendUnavailable):
        return None


async def _get(query: Query, item_id: UUID) -> ItemRead:
    return await query.get(item_id)


async def _update(command: Command, item_id: UUID, price: int) -> ItemRead:
    return await command.update(item_id, 1, ItemUpdate(price=price))
