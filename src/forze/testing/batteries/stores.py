"""What every ``DocumentStore`` does: reads and writes of rows, without any cache."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone
from operator import attrgetter
from typing import Any
from uuid import UUID, uuid4

from forze.application.contracts.document import (
    DocumentSpec,
    DocumentStore,
    DocumentStoreDepKey,
    Filters,
)
from forze.application.execution import ExecutionContext
from forze.errors import (
    ConflictError,
    NotFoundError,
    RevisionMismatch,
    TenantRequired,
    ValidationError,
)
from forze.testing.batteries.items import ITEMS, OWNED_ITEMS, Details, Item, ItemRead
from forze.testing.batteries.legs import Calls, DocumentLeg, apart, cancelled, waits
from forze.testing.batteries.refusals import refused

Store = DocumentStore[ItemRead]


def _store(ctx: ExecutionContext, spec: DocumentSpec[ItemRead, Any, Any] = ITEMS) -> Store:
    return ctx.provide(DocumentStoreDepKey, spec.name)(ctx, spec)


def _item(number: int, **values: Any) -> Item:
    fields: dict[str, Any] = {"name": f"item {number}", "price": number, **values}
    return Item(**fields)


async def _stored(store: Store, count: int, **values: Any) -> list[ItemRead]:
    return await store.insert([_item(number, **values) for number in range(count)])


class StoreBehaviour:
    """What each call does, alone and beside others."""

    async def test_what_is_inserted_is_fetched(self, document_leg: DocumentLeg) -> None:
        store = _store(document_leg.ctx)
        document = _item(
            7,
            note="x' ; -- \"\\ %_ é \U0001f600",
            tags=["a", "", "b'"],
            details=Details(colour="rêd", sizes=[1, 2]),
            released_at=datetime(2024, 2, 29, 23, 59, 59, 999_999, timezone(timedelta(hours=-5))),
        )
        (inserted,) = await store.insert([document])
        assert inserted == ItemRead(**document.model_dump())
        assert await store.fetch([document.id]) == {document.id: inserted}
        assert await _store(document_leg.other).fetch([document.id]) == {document.id: inserted}
        assert type(inserted) is ItemRead
        assert inserted.released_at is not None
        assert inserted.released_at.utcoffset() is not None

    async def test_insert_answers_in_the_order_given(self, document_leg: DocumentLeg) -> None:
        documents = [_item(number, id=uuid4()) for number in range(20)]
        inserted = await _store(document_leg.ctx).insert(documents)
        assert [each.id for each in inserted] == [each.id for each in documents]

    async def test_fetch_leaves_out_what_is_not_there(self, document_leg: DocumentLeg) -> None:
        store = _store(document_leg.ctx)
        one, two = await _stored(store, 2)
        found = await store.fetch([uuid4(), two.id, one.id, one.id])
        assert found == {one.id: one, two.id: two}
        assert await store.fetch([uuid4()]) == {}
        assert await store.fetch([]) == {}

    async def test_insert_is_all_or_none(self, document_leg: DocumentLeg) -> None:
        store = _store(document_leg.ctx)
        (there,) = await _stored(store, 1)
        with refused(ConflictError, "items", str(there.id)):
            await store.insert([_item(1), _item(2, id=there.id), _item(3)])
        twice = _item(4)
        with refused(ConflictError, str(twice.id)):
            await store.insert([twice, twice])
        assert await store.count({}) == 1
        assert (await store.fetch([there.id]))[there.id] == there

    async def test_update_writes_the_values_and_raises_rev(self, document_leg: DocumentLeg) -> None:
        store = _store(document_leg.ctx)
        (before,) = await _stored(store, 1, tags=["a"])
        values = {"price": 5, "tags": ["b"], "details": Details(colour="red"), "note": "n"}
        after = await store.update(before.id, 1, values)
        assert after == before.model_copy(
            update={**values, "rev": 2, "last_update_at": after.last_update_at}
        )
        assert after.last_update_at > before.last_update_at
        assert await store.fetch([before.id]) == {before.id: after}
        cleared = await store.update(before.id, 2, {"note": None, "details": None})
        assert (cleared.rev, cleared.note, cleared.details) == (3, None, None)

    async def test_an_update_that_changes_nothing_leaves_rev(
        self, document_leg: DocumentLeg
    ) -> None:
        store = _store(document_leg.ctx)
        (before,) = await _stored(store, 1, tags=["a"], details=Details(colour="red", sizes=[1]))
        same = {
            "price": 0,
            "tags": ["a"],
            "details": Details(colour="red", sizes=[1]),
            "note": None,
        }
        assert await store.update(before.id, 1, same) == before
        assert await store.update(before.id, 1, {}) == before
        assert await store.fetch([before.id]) == {before.id: before}

    async def test_a_stale_rev_is_refused_with_the_current_one(
        self, document_leg: DocumentLeg
    ) -> None:
        store = _store(document_leg.ctx)
        (before,) = await _stored(store, 1)
        current = await store.update(before.id, 1, {"price": 1})
        for stale in (1, 3, 0, -1):
            with refused(RevisionMismatch, str(before.id)) as caught:
                await store.update(before.id, stale, {"price": 2})
            assert (caught.error.expected, caught.error.current) == (stale, 2)
        with refused(RevisionMismatch):
            await store.update(before.id, 1, {})
        assert await store.fetch([before.id]) == {before.id: current}

    async def test_touch_raises_rev_alone(self, document_leg: DocumentLeg) -> None:
        store = _store(document_leg.ctx)
        (before,) = await _stored(store, 1)
        after = await store.touch(before.id)
        assert after == before.model_copy(update={"rev": 2, "last_update_at": after.last_update_at})
        assert after.last_update_at > before.last_update_at

    async def test_what_is_not_there_is_not_found(self, document_leg: DocumentLeg) -> None:
        store, nobody = _store(document_leg.ctx), uuid4()
        calls: Calls = (
            lambda: store.update(nobody, 1, {"price": 1}),
            lambda: store.update(nobody, 1, {}),
            lambda: store.touch(nobody),
        )
        for call in calls:
            with refused(NotFoundError, str(nobody), "items") as caught:
                await call()
            assert caught.error.ids == (str(nobody),)
        assert await store.delete([nobody]) == []

    async def test_delete_answers_what_existed(self, document_leg: DocumentLeg) -> None:
        store = _store(document_leg.ctx)
        one, two, three = await _stored(store, 3)
        assert set(await store.delete([one.id, uuid4(), two.id])) == {one.id, two.id}
        assert await store.fetch([one.id, two.id, three.id]) == {three.id: three}
        assert await store.delete([one.id]) == []
        (again,) = await store.insert([_item(9, id=one.id)])
        assert again.rev == 1

    async def test_update_matching_changes_what_differs(self, document_leg: DocumentLeg) -> None:
        store = _store(document_leg.ctx)
        items = await _stored(store, 5)
        changed = await store.update_matching({"price": {"gte": 2}}, {"price": 3})
        assert set(changed) == {items[2].id, items[4].id}
        after = await store.fetch([each.id for each in items])
        assert [after[each.id].price for each in items] == [0, 1, 3, 3, 3]
        assert [after[each.id].rev for each in items] == [1, 1, 2, 1, 2]
        assert await store.update_matching({"price": 99}, {"price": 1}) == []
        assert await store.update_matching({}, {}) == []

    async def test_delete_matching(self, document_leg: DocumentLeg) -> None:
        store = _store(document_leg.ctx)
        items = await _stored(store, 5)
        removed = await store.delete_matching({"price": {"lt": 2}})
        assert set(removed) == {items[0].id, items[1].id}
        assert await store.count({}) == 3
        assert await store.delete_matching({"price": 0}) == []

    async def test_every_filter(self, document_leg: DocumentLeg) -> None:
        store = _store(document_leg.ctx)
        day = datetime(2024, 1, 1, tzinfo=UTC)
        items = await store.insert(
            [
                _item(0, name="Apple", note=None),
                _item(1, name="apple pie", note="50% off_", released_at=day),
                _item(2, name="banana", note="", tags=["x"], released_at=day + timedelta(days=1)),
                _item(3, name="bán\\na'", note="50 off", details=Details(colour="red")),
            ]
        )
        cases: list[tuple[Filters, list[int]]] = [
            ({}, [0, 1, 2, 3]),
            ({"name": "banana"}, [2]),
            ({"name": {"eq": "banana"}}, [2]),
            ({"name": {"ne": "banana"}}, [0, 1, 3]),
            ({"id": items[1].id}, [1]),
            ({"id": {"in": [items[3].id, items[0].id, uuid4()]}}, [0, 3]),
            ({"rev": 1}, [0, 1, 2, 3]),
            ({"price": {"lt": 1}}, [0]),
            ({"price": {"lte": 1}}, [0, 1]),
            ({"price": {"gt": 1}}, [2, 3]),
            ({"price": {"gte": 1, "lt": 3}}, [1, 2]),
            ({"price": {"gte": 1}, "name": {"contains": "an"}}, [2]),
            ({"price": {"in": [0, 3, 9]}}, [0, 3]),
            ({"price": {"in": []}}, []),
            ({"price": {"not_in": [0, 3]}}, [1, 2]),
            ({"price": {"not_in": []}}, [0, 1, 2, 3]),
            ({"note": None}, [0]),
            ({"note": {"eq": None}}, [0]),
            ({"note": {"ne": None}}, [1, 2, 3]),
            ({"note": {"is_null": True}}, [0]),
            ({"note": {"is_null": False}}, [1, 2, 3]),
            ({"note": {"ne": "50 off"}}, [0, 1, 2]),
            ({"note": {"not_in": ["50 off", ""]}}, [0, 1]),
            ({"note": {"contains": ""}}, [1, 2, 3]),
            ({"note": {"contains": "%"}}, [1]),
            ({"note": {"contains": "_"}}, [1]),
            ({"name": {"contains": "\\"}}, [3]),
            ({"name": {"contains": "'"}}, [3]),
            ({"name": {"contains": "pple"}}, [0, 1]),
            ({"name": {"starts_with": "apple"}}, [1]),
            ({"name": {"starts_with": "A"}}, [0]),
            ({"name": {"starts_with": "b%"}}, []),
            ({"name": {"starts_with": "bá"}}, [3]),
            ({"released_at": {"gt": day}}, [2]),
            ({"released_at": day.astimezone(timezone(timedelta(hours=3)))}, [1]),
            ({"released_at": {"lte": "2024-01-01T00:00:00Z"}}, [1]),
            ({"tags": {"eq": ["x"]}}, [2]),
            ({"details": {"eq": {"colour": "red"}}}, [3]),
            ({"details": {"is_null": False}}, [3]),
        ]
        for filters, expected in cases:
            page = await store.find(filters, ["price", "id"], 10, None)
            assert [item.price for item in page.items] == expected, filters
            assert page.more is False
            assert await store.count(filters) == len(expected), filters
            ids = await store.find_ids(filters, ["price", "id"], 10)
            assert ids == [item.id for item in page.items], filters

    async def test_every_sort_page_by_page(self, document_leg: DocumentLeg) -> None:
        store = _store(document_leg.ctx)
        day = datetime(2024, 1, 1, tzinfo=UTC)
        await store.insert(
            [
                _item(
                    number % 3,
                    name="abc"[number % 2],
                    note=None if number % 4 == 0 else f"n{number % 5}",
                    released_at=None if number % 3 == 0 else day + timedelta(days=number % 2),
                )
                for number in range(24)
            ]
        )
        everything = list((await store.find({}, ["id"], 100, None)).items)
        for sort in (
            ["id"],
            ["-id"],
            ["price", "id"],
            ["-price", "-id"],
            ["name", "-price", "id"],
            ["note", "id"],
            ["-note", "id"],
            ["-released_at", "note", "-price", "-id"],
            ["released_at", "-note", "id"],
        ):
            expected = _sorted(everything, sort)
            for limit in (1, 7, 24, 100):
                assert await _pages(store, sort, limit) == expected, (sort, limit)
                ids = await store.find_ids({}, sort, limit)
                assert ids == expected[:limit], (sort, limit)

    async def test_a_page_tells_whether_more_follow(self, document_leg: DocumentLeg) -> None:
        store = _store(document_leg.ctx)
        await _stored(store, 3)
        for limit, count, more in ((2, 2, True), (3, 3, False), (4, 3, False)):
            page = await store.find({}, ["price", "id"], limit, None)
            assert (len(page.items), page.more) == (count, more)

    async def test_a_page_goes_on_where_its_last_row_was(self, document_leg: DocumentLeg) -> None:
        store = _store(document_leg.ctx)
        items = await _stored(store, 5)
        sort = ["price", "id"]
        page = await store.find({}, sort, 2, None)
        await store.delete([items[1].id])
        await store.insert([_item(-1), _item(1)])
        after = [page.items[-1].price, page.items[-1].id]
        rest = await store.find({}, sort, 10, after)
        assert [each.price for each in rest.items][-3:] == [2, 3, 4]
        assert items[0].id not in [each.id for each in rest.items]

    async def test_the_domain_model_is_read_in_a_transaction(
        self, document_leg: DocumentLeg
    ) -> None:
        store = _store(document_leg.ctx)
        document = _item(1, tags=["a"], details=Details(colour="red"))
        await store.insert([document])
        async with document_leg.ctx.transaction("items"):
            found = await store.domain(document.id)
            assert found == document
            assert type(found) is Item
            assert await store.domain(uuid4()) is None

    async def test_nothing_handed_over_can_change_the_store(
        self, document_leg: DocumentLeg
    ) -> None:
        store = _store(document_leg.ctx)
        document = _item(1, tags=["a"], details=Details(colour="red", sizes=[1]))
        (inserted,) = await store.insert([document])
        document.tags.append("changed")
        inserted.tags.append("changed")
        found = (await store.fetch([inserted.id]))[inserted.id]
        assert found.tags == ["a"]
        assert found.details is not None
        found.details.sizes.append(2)
        tags = ["b"]
        await store.update(inserted.id, 1, {"tags": tags})
        tags.append("changed")
        found = (await store.fetch([inserted.id]))[inserted.id]
        assert found.tags == ["b"]
        assert found.details == Details(colour="red", sizes=[1])

    async def test_tenants_are_apart(self, document_leg: DocumentLeg) -> None:
        ctx = document_leg.ctx
        store = _store(ctx, OWNED_ITEMS)
        assert store.relations.tenant_aware
        with ctx.bind_tenant("a"):
            (of_a,) = await store.insert([_item(1)])
            assert await store.count({}) == 1
        with ctx.bind_tenant("b"):
            (of_b,) = await store.insert([_item(2)])
            assert await store.fetch([of_a.id, of_b.id]) == {of_b.id: of_b}
            assert await store.count({}) == 1
            assert (await store.find({}, ["id"], 10, None)).items == [of_b]
            assert await store.find_ids({}, ["id"], 10) == [of_b.id]
            assert await store.update_matching({}, {"price": 9}) == [of_b.id]
            assert await store.delete([of_a.id]) == []
            assert await store.delete_matching({"price": 1}) == []
            calls: Calls = (
                lambda: store.update(of_a.id, 1, {"price": 9}),
                lambda: store.touch(of_a.id),
            )
            for call in calls:
                with refused(NotFoundError):
                    await call()
            async with ctx.transaction("items"):
                assert await store.domain(of_a.id) is None
            with refused(ConflictError):
                await store.insert([_item(3, id=of_a.id)])
        with ctx.bind_tenant("a"):
            assert await store.fetch([of_a.id]) == {of_a.id: of_a}

    async def test_its_relations_tell_who_shares_them(self, document_leg: DocumentLeg) -> None:
        store, owned = _store(document_leg.ctx), _store(document_leg.ctx, OWNED_ITEMS)
        assert store.relations.writes
        assert store.relations.writes & store.relations.reads
        assert not store.relations.writes & owned.relations.writes
        assert store.manager is owned.manager
        await store.check()
        await owned.check()


class StoreFailures:
    """Writers in each other's way, bad input, callers that go away."""

    async def test_a_writer_waits_for_the_row_and_looks_again(
        self, document_leg: DocumentLeg
    ) -> None:
        store, elsewhere = _store(document_leg.ctx), _store(document_leg.other)
        (item,) = await _stored(store, 1)
        async with document_leg.ctx.transaction("items"):
            await store.update(item.id, 1, {"price": 1})
            late = apart(_update(elsewhere, item.id, 1, 2))
            assert await waits(late)
        with refused(RevisionMismatch) as caught:
            await late
        assert caught.error.current == 2

    async def test_a_rolled_back_writer_lets_the_next_one_through(
        self, document_leg: DocumentLeg
    ) -> None:
        store, elsewhere = _store(document_leg.ctx), _store(document_leg.other)
        (item,) = await _stored(store, 1)
        with refused(KeyError):
            async with document_leg.ctx.transaction("items"):
                await store.update(item.id, 1, {"price": 1})
                late = apart(_update(elsewhere, item.id, 1, 2))
                assert await waits(late)
                raise KeyError
        assert (await late).price == 2

    async def test_an_update_waits_for_a_delete(self, document_leg: DocumentLeg) -> None:
        store, elsewhere = _store(document_leg.ctx), _store(document_leg.other)
        (item,) = await _stored(store, 1)
        async with document_leg.ctx.transaction("items"):
            await store.delete([item.id])
            late = apart(_update(elsewhere, item.id, 1, 2))
            assert await waits(late)
        with refused(NotFoundError):
            await late

    async def test_an_insert_waits_for_one_of_the_same_id(self, document_leg: DocumentLeg) -> None:
        store, elsewhere = _store(document_leg.ctx), _store(document_leg.other)
        document = _item(1)
        async with document_leg.ctx.transaction("items"):
            await store.insert([document])
            late = apart(elsewhere.insert([document]))
            assert await waits(late)
        with refused(ConflictError, str(document.id)):
            await late

    async def test_for_update_holds_the_row(self, document_leg: DocumentLeg) -> None:
        store, elsewhere = _store(document_leg.ctx), _store(document_leg.other)
        (item,) = await _stored(store, 1)
        async with document_leg.ctx.transaction("items"):
            assert await store.fetch([item.id, uuid4()], for_update=True) == {item.id: item}
            late = apart(_update(elsewhere, item.id, 1, 2))
            assert await waits(late)
            assert await apart(_fetch(elsewhere, [item.id])) == {item.id: item}
        assert (await late).price == 2

    async def test_the_domain_model_is_read_with_its_row_held(
        self, document_leg: DocumentLeg
    ) -> None:
        store, elsewhere = _store(document_leg.ctx), _store(document_leg.other)
        (item,) = await _stored(store, 1)
        async with document_leg.ctx.transaction("items"):
            await store.domain(item.id)
            late = apart(_update(elsewhere, item.id, 1, 2))
            assert await waits(late)
        assert (await late).price == 2

    async def test_a_match_is_looked_at_again_after_waiting(
        self, document_leg: DocumentLeg
    ) -> None:
        store, elsewhere = _store(document_leg.ctx), _store(document_leg.other)
        items = await _stored(store, 3)
        async with document_leg.ctx.transaction("items"):
            await store.update(items[1].id, 1, {"price": 50})
            late = apart(_delete_matching(elsewhere, {"price": {"lt": 10}}))
            assert await waits(late)
        assert set(await late) == {items[0].id, items[2].id}

    async def test_concurrent_writers_of_one_rev(self, document_leg: DocumentLeg) -> None:
        stores = (_store(document_leg.ctx), _store(document_leg.other))
        (item,) = await _stored(stores[0], 1)
        results = await asyncio.gather(
            *(_update(stores[number % 2], item.id, 1, number + 1) for number in range(8)),
            return_exceptions=True,
        )
        won = [each for each in results if isinstance(each, ItemRead)]
        lost = [each for each in results if isinstance(each, RevisionMismatch)]
        assert (len(won), len(lost)) == (1, 7)
        assert await stores[0].fetch([item.id]) == {item.id: won[0]}

    async def test_a_cancelled_waiter_changes_nothing_and_holds_nothing(
        self, document_leg: DocumentLeg
    ) -> None:
        store, elsewhere = _store(document_leg.ctx), _store(document_leg.other)
        (item,) = await _stored(store, 1)
        async with document_leg.ctx.transaction("items"):
            await store.update(item.id, 1, {"price": 1})
            late = apart(_update(elsewhere, item.id, 1, 2))
            assert await waits(late)
            assert await cancelled(late)
        assert (await store.update(item.id, 2, {"price": 3})).rev == 3

    async def test_no_tenant_is_an_error(self, document_leg: DocumentLeg) -> None:
        store, some = _store(document_leg.ctx, OWNED_ITEMS), uuid4()
        for call in (
            lambda: store.fetch([some]),
            lambda: store.find({}, ["id"], 1, None),
            lambda: store.count({}),
            lambda: store.insert([_item(1)]),
            lambda: store.update(some, 1, {"price": 1}),
            lambda: store.update_matching({}, {"price": 1}),
            lambda: store.touch(some),
            lambda: store.delete([some]),
            lambda: store.delete_matching({}),
        ):
            with refused(TenantRequired, "owned_items", "bind_tenant"):
                await call()

    async def test_what_cannot_be_asked_is_refused(self, document_leg: DocumentLeg) -> None:
        store = _store(document_leg.ctx)
        (item,) = await _stored(store, 1)
        bad: list[tuple[Filters, str]] = [
            ({"nope": 1}, "nope"),
            ({'name"; DROP': 1}, "DROP"),
            ({"price": {"like": 1}}, "like"),
            ({"price": "many"}, "price"),
            ({"price": {"lt": None}}, "is_null"),
            ({"price": {"in": 1}}, "in"),
            ({"price": {"contains": "1"}}, "contains"),
            ({"note": {"is_null": 1}}, "is_null"),
            ({"released_at": datetime(2024, 1, 1)}, "released_at"),
        ]
        for filters, word in bad:
            for call in (
                lambda filters=filters: store.count(filters),
                lambda filters=filters: store.find(filters, ["id"], 1, None),
                lambda filters=filters: store.delete_matching(filters),
                lambda filters=filters: store.update_matching(filters, {"price": 9}),
            ):
                with refused(ValidationError, word):
                    await call()
        for sort, word in ((["nope"], "nope"), (["price", "-price"], "price"), (["tags"], "tags")):
            with refused(ValidationError, word):
                await store.find({}, sort, 1, None)
        assert await store.fetch([item.id]) == {item.id: item}


def _sorted(items: Sequence[ItemRead], sort: Sequence[str]) -> list[UUID]:
    """By the plainest means: stable sorts, the last key first; missing values at the end."""
    ordered = list(items)
    for key in reversed(sort):
        name = key.removeprefix("-")
        there = [each for each in ordered if getattr(each, name) is not None]
        there.sort(key=attrgetter(name), reverse=key.startswith("-"))
        ordered = there + [each for each in ordered if getattr(each, name) is None]
    return [each.id for each in ordered]


async def _pages(store: Store, sort: Sequence[str], limit: int) -> list[UUID]:
    found: list[UUID] = []
    after: list[Any] | None = None
    while True:
        page = await store.find({}, sort, limit, after)
        assert len(page.items) <= limit
        found += [each.id for each in page.items]
        if not page.more:
            return found
        after = [getattr(page.items[-1], key.removeprefix("-")) for key in sort]


async def _update(store: Store, pk: UUID, rev: int, price: int) -> ItemRead:
    return await store.update(pk, rev, {"price": price})


async def _fetch(store: Store, ids: Sequence[UUID]) -> dict[UUID, ItemRead]:
    return await store.fetch(ids)


async def _delete_matching(store: Store, filters: Filters) -> list[UUID]:
    return await store.delete_matching(filters)
