"""What a document's ``find_snapshot`` does: a frozen search, read page by page."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from forze.application.contracts.cache import CacheSpec
from forze.application.contracts.document import (
    DocumentQueryPort,
    DocumentSpec,
    DocumentWriteTypes,
    SnapshotPage,
)
from forze.application.contracts.search import (
    SearchResultSnapshotSpec,
)
from forze.application.execution import ExecutionContext
from forze.errors import (
    ConfigurationError,
    NotFoundError,
    SnapshotGone,
    TenantRequired,
    ValidationError,
)
from forze.testing.batteries.items import Item, ItemCreate, ItemRead, ItemUpdate
from forze.testing.batteries.legs import apart
from forze.testing.batteries.refusals import refused
from forze.testing.batteries.search_snapshots import SECRET

# -- documents -----------------------------------------------------------------

_WRITE = DocumentWriteTypes(domain=Item, create_cmd=ItemCreate, update_cmd=ItemUpdate)
FROZEN_ITEMS: DocumentSpec[ItemRead, ItemCreate, ItemUpdate] = DocumentSpec(
    name="frozen_items",
    read=ItemRead,
    write=_WRITE,
    cache=CacheSpec(name="frozen_items"),
    snapshot=SearchResultSnapshotSpec(
        name="frozen_items", ttl=timedelta(minutes=10), max_ids=12, cursor_secret=SECRET
    ),
)
PLAIN_ITEMS: DocumentSpec[ItemRead, ItemCreate, ItemUpdate] = DocumentSpec(
    name="plain_items", read=ItemRead, write=_WRITE
)
OWNED_FROZEN_ITEMS: DocumentSpec[ItemRead, ItemCreate, ItemUpdate] = DocumentSpec(
    name="owned_frozen_items",
    read=ItemRead,
    write=_WRITE,
    snapshot=SearchResultSnapshotSpec(name="owned_frozen_items", cursor_secret=SECRET),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotSearchLeg:
    """A document backend with snapshots: two processes over one database and one server.

    Both contexts answer ``FROZEN_ITEMS`` and ``PLAIN_ITEMS`` (one relation, with a cache and
    snapshots for the first) and ``OWNED_FROZEN_ITEMS`` (tenant-aware, its snapshots too), and
    the transaction route ``frozen_items``. ``pass_time`` and ``trips`` as in ``SnapshotLeg``.
    """

    ctx: ExecutionContext
    other: ExecutionContext
    pass_time: Callable[[timedelta], Awaitable[None]]
    trips: Callable[[], int] | None = None


def _query(leg: SnapshotSearchLeg) -> DocumentQueryPort[ItemRead]:
    return leg.ctx.document.query(FROZEN_ITEMS)


async def _items(leg: SnapshotSearchLeg, number: int) -> list[ItemRead]:
    command = leg.ctx.document.command(FROZEN_ITEMS)
    return await command.create_many(
        [ItemCreate(name=f"item {each}", price=each) for each in range(number)]
    )


def _prices(page: SnapshotPage[ItemRead]) -> list[int]:
    return [each.price for each in page.items]


async def _all_prices(
    query: DocumentQueryPort[ItemRead], page: SnapshotPage[ItemRead], **asked: Any
) -> list[int]:
    """The prices of this page and all after it."""
    prices = _prices(page)
    while page.next_cursor is not None:
        page = await query.find_snapshot(**asked, after=page.next_cursor)
        prices += _prices(page)
    return prices


class SnapshotSearchBehaviour:
    """``find_snapshot`` where nothing goes wrong."""

    async def test_pages_in_order(self, search_leg: SnapshotSearchLeg) -> None:
        await _items(search_leg, 10)
        query = _query(search_leg)
        asked: dict[str, Any] = {"filters": {"price": {"gte": 2}}, "sort": ["-price"], "limit": 3}
        page = await query.find_snapshot(**asked)
        assert _prices(page) == [9, 8, 7]
        assert (page.total, page.truncated, page.missing, page.rebuilt) == (8, False, [], False)
        page = await query.find_snapshot(**asked, after=page.next_cursor)
        assert _prices(page) == [6, 5, 4]
        page = await query.find_snapshot(**asked, after=page.next_cursor)
        assert (_prices(page), page.next_cursor, page.total) == ([3, 2], None, 8)

    async def test_nothing_found_is_a_page(self, search_leg: SnapshotSearchLeg) -> None:
        for share in (False, True):
            page = await _query(search_leg).find_snapshot({"price": -1}, share=share)
            assert (page.items, page.next_cursor, page.total) == ([], None, 0)

    async def test_exactly_one_page(self, search_leg: SnapshotSearchLeg) -> None:
        await _items(search_leg, 4)
        page = await _query(search_leg).find_snapshot(sort=["price"], limit=4)
        assert (_prices(page), page.next_cursor) == ([0, 1, 2, 3], None)

    async def test_what_happens_later_does_not_move_the_pages(
        self, search_leg: SnapshotSearchLeg
    ) -> None:
        """New matches do not appear, removed ones are reported, changed ones shown changed."""
        items = await _items(search_leg, 6)
        query, command = _query(search_leg), search_leg.ctx.document.command(FROZEN_ITEMS)
        asked: dict[str, Any] = {"sort": ["price"], "limit": 2}
        page = await query.find_snapshot(**asked)
        await command.create(ItemCreate(name="new", price=0))
        await command.kill(items[2].id)
        await command.update(items[3].id, items[3].rev, ItemUpdate(price=100))
        page = await query.find_snapshot(**asked, after=page.next_cursor)
        assert _prices(page) == [100]
        assert page.missing == [items[2].id]
        assert page.total == 6
        page = await query.find_snapshot(**asked, after=page.next_cursor)
        assert _prices(page) == [4, 5]

    async def test_a_page_can_be_asked_again_and_elsewhere(
        self, search_leg: SnapshotSearchLeg
    ) -> None:
        await _items(search_leg, 6)
        asked: dict[str, Any] = {"sort": ["price"], "limit": 2}
        page = await _query(search_leg).find_snapshot(**asked)
        for ctx in (search_leg.ctx, search_leg.other, search_leg.ctx):
            query = ctx.document.query(FROZEN_ITEMS)
            again = await query.find_snapshot(**asked, after=page.next_cursor)
            assert _prices(again) == [2, 3]
            larger = await query.find_snapshot(sort=["price"], limit=3, after=page.next_cursor)
            assert _prices(larger) == [2, 3, 4]

    async def test_over_the_cap_it_says_so(self, search_leg: SnapshotSearchLeg) -> None:
        await _items(search_leg, 13)
        query = _query(search_leg)
        page = await query.find_snapshot(sort=["price"], limit=5)
        assert (page.total, page.truncated) == (12, True)
        assert await _all_prices(query, page, sort=["price"], limit=5) == list(range(12))
        page = await query.find_snapshot({"price": {"gte": 1}}, limit=5)
        assert (page.total, page.truncated) == (12, False)

    async def test_equal_searches_are_spelled_in_many_ways(
        self, search_leg: SnapshotSearchLeg
    ) -> None:
        await _items(search_leg, 6)
        query = _query(search_leg)
        one: dict[str, Any] = {"price": {"gte": 1, "lt": 6}, "name": {"ne": "x"}}
        page = await query.find_snapshot(one, sort=["price"], limit=2)
        for same in (
            {"name": {"ne": "x"}, "price": {"lt": 6, "gte": 1}},
            {"name": {"ne": "x"}, "price": {"lt": "6", "gte": 1.0}},
        ):
            for sort in (["price"], ["price", "id"]):
                again = await query.find_snapshot(same, sort=sort, limit=2, after=page.next_cursor)
                assert _prices(again) == [3, 4]
        page = await query.find_snapshot({"price": {"in": [1, 2, 3]}}, limit=2)
        choices: Sequence[Any] = ([3, 1, 2, 1], {1, 2, 3}, iter([2, 3, 1]), range(1, 4))
        for each in choices:  # the order of a set differs from process to process
            again = await query.find_snapshot(
                {"price": {"in": each}}, limit=2, after=page.next_cursor
            )
            assert _prices(again) == [3]

    async def test_filters_may_be_read_once_only(self, search_leg: SnapshotSearchLeg) -> None:
        await _items(search_leg, 6)
        page = await _query(search_leg).find_snapshot(
            {"price": {"in": (each for each in (1, 2, 3))}}, sort=["price"]
        )
        assert _prices(page) == [1, 2, 3]

    async def test_documents_come_through_the_cache(self, search_leg: SnapshotSearchLeg) -> None:
        await _items(search_leg, 4)
        query = search_leg.ctx.document.query(FROZEN_ITEMS)
        page = await query.find_snapshot(sort=["price"], limit=2)
        stats = query.stats()
        assert stats is not None
        assert (stats.misses, stats.hits) == (2, 0)
        await query.find_snapshot(sort=["price"], limit=2)
        await query.find_snapshot(sort=["price"], limit=2, after=page.next_cursor)
        stats = query.stats()
        assert stats is not None
        assert (stats.misses, stats.hits) == (4, 2)

    async def test_shared_there_is_one_run(self, search_leg: SnapshotSearchLeg) -> None:
        await _items(search_leg, 4)
        queries = [ctx.document.query(FROZEN_ITEMS) for ctx in (search_leg.ctx, search_leg.other)]
        asked: dict[str, Any] = {"sort": ["price"], "limit": 3}
        first = await queries[0].find_snapshot(**asked, share=True)
        await search_leg.ctx.document.command(FROZEN_ITEMS).create(ItemCreate(name="n", price=-1))
        pages = await asyncio.gather(
            *(queries[n % 2].find_snapshot(**asked, share=True) for n in range(10))
        )
        assert [_prices(each) for each in pages] == [[0, 1, 2]] * 10
        assert {each.next_cursor for each in pages} == {first.next_cursor}
        assert _prices(await queries[0].find_snapshot(**asked)) == [-1, 0, 1], "unless not asked to"
        other = await queries[1].find_snapshot({"price": {"lt": 3}}, **asked, share=True)
        assert _prices(other) == [-1, 0, 1], "another search"

    async def test_searches_at_once_run_the_query_once(self, search_leg: SnapshotSearchLeg) -> None:
        await _items(search_leg, 4)
        query = _query(search_leg)
        pages = await asyncio.gather(
            *(query.find_snapshot(sort=["price"], limit=2, share=True) for _ in range(20))
        )
        assert len({each.next_cursor for each in pages}) == 1
        assert [_prices(each) for each in pages] == [[0, 1]] * 20

    async def test_a_shared_run_is_young_enough_to_be_read(
        self, search_leg: SnapshotSearchLeg
    ) -> None:
        await _items(search_leg, 4)
        query = _query(search_leg)
        asked: dict[str, Any] = {"sort": ["price"], "limit": 2}
        first = await query.find_snapshot(**asked, share=True)
        await search_leg.pass_time(timedelta(minutes=4))
        assert (await query.find_snapshot(**asked, share=True)).next_cursor == first.next_cursor
        await search_leg.pass_time(timedelta(minutes=2))
        later = await query.find_snapshot(**asked, share=True)
        assert later.next_cursor != first.next_cursor
        await search_leg.pass_time(timedelta(minutes=3))
        assert _prices(await query.find_snapshot(**asked, after=first.next_cursor)) == [2, 3]

    async def test_a_transaction_shares_nothing(self, search_leg: SnapshotSearchLeg) -> None:
        ctx, query = search_leg.ctx, _query(search_leg)
        await _items(search_leg, 2)
        asked: dict[str, Any] = {"sort": ["price"], "limit": 5, "share": True}
        async with ctx.transaction("frozen_items"):
            await ctx.document.command(FROZEN_ITEMS).create(ItemCreate(name="n", price=9))
            assert _prices(await query.find_snapshot(**asked)) == [0, 1, 9]
            others = search_leg.other.document.query(FROZEN_ITEMS)
            elsewhere = await apart(others.find_snapshot(**asked))
            assert (_prices(elsewhere), elsewhere.total) == ([0, 1], 2)

    async def test_a_page_is_one_trip_beside_its_documents(
        self, search_leg: SnapshotSearchLeg
    ) -> None:
        if search_leg.trips is None:
            return
        await _items(search_leg, 6)
        query = _query(search_leg)
        page = await query.find_snapshot(sort=["price"], limit=3)
        ids = [each.id for each in page.items]
        second = await query.find_snapshot(sort=["price"], limit=3, after=page.next_cursor)
        before = search_leg.trips()
        await query.get_many(ids)
        hydrating = search_leg.trips() - before
        before = search_leg.trips()
        await query.find_snapshot(sort=["price"], limit=3, after=page.next_cursor)
        assert search_leg.trips() - before == hydrating + 2, "two commands that travel together"
        assert len(second.items) == 3


class SnapshotSearchFailures:
    """``find_snapshot`` where something goes wrong."""

    async def test_without_a_spec_it_says_what_to_add(self, search_leg: SnapshotSearchLeg) -> None:
        query = search_leg.ctx.document.query(PLAIN_ITEMS)
        with refused(ConfigurationError, "'plain_items'", "snapshot=", "SearchResultSnapshotSpec"):
            await query.find_snapshot()
        with refused(ConfigurationError, "'a'", "cursor_secret", "token_hex"):
            DocumentSpec(name="a", read=ItemRead, snapshot=SearchResultSnapshotSpec(name="a"))

    async def test_gone_is_told_and_can_be_rebuilt(self, search_leg: SnapshotSearchLeg) -> None:
        await _items(search_leg, 6)
        query = _query(search_leg)
        asked: dict[str, Any] = {"sort": ["price"], "limit": 2}
        page = await query.find_snapshot(**asked)
        await search_leg.pass_time(timedelta(minutes=11))
        with refused(SnapshotGone, "frozen_items", "expired", "search again") as caught:
            await query.find_snapshot(**asked, after=page.next_cursor)
        assert isinstance(caught.error, NotFoundError)
        await search_leg.ctx.document.command(FROZEN_ITEMS).create(ItemCreate(name="n", price=-1))
        again = await query.find_snapshot(**asked, after=page.next_cursor, gone="rebuild")
        assert (again.rebuilt, _prices(again), again.total) == (True, [1, 2], 7)
        last = await query.find_snapshot(**asked, after=again.next_cursor)
        assert (last.rebuilt, _prices(last)) == (False, [3, 4])
        wrong: Any = "ignore"
        with refused(ValidationError, "gone", "rebuild"):
            await query.find_snapshot(**asked, gone=wrong)

    async def test_a_cursor_is_of_its_search(self, search_leg: SnapshotSearchLeg) -> None:
        await _items(search_leg, 6)
        query = _query(search_leg)
        asked: dict[str, Any] = {"filters": {"price": {"gte": 0}}, "sort": ["price"]}
        page = await query.find_snapshot(**asked, limit=2)
        others: Sequence[dict[str, Any]] = (
            {"sort": ["price"]},
            {"filters": {"price": {"gte": 1}}, "sort": ["price"]},
            {"filters": {"price": {"gt": 0}}, "sort": ["price"]},
            {"filters": {"rev": {"gte": 0}}, "sort": ["price"]},
            {"filters": {"price": {"gte": 0}}, "sort": ["-price"]},
            {"filters": {"price": {"gte": 0}}},
        )
        for other in others:
            with refused(ValidationError, "another search", "filters") as caught:
                await query.find_snapshot(**other, after=page.next_cursor)
            assert caught.error.field == "after"
        cursor = page.next_cursor or ""
        another = ("B" if cursor.startswith("A") else "A") + cursor[1:]
        for wrong in (cursor[:-1], cursor + "A", another, ""):
            with refused(ValidationError, "not a cursor of yours") as caught:
                await query.find_snapshot(**asked, after=wrong)
            assert caught.error.field == "after"

    async def test_a_cursor_is_of_its_tenant_and_principal(
        self, search_leg: SnapshotSearchLeg
    ) -> None:
        ctx, query = search_leg.ctx, search_leg.ctx.document.query(OWNED_FROZEN_ITEMS)
        for tenant in ("a", "b"):
            with ctx.bind_tenant(tenant):
                await ctx.document.command(OWNED_FROZEN_ITEMS).create_many(
                    [ItemCreate(name=tenant, price=each) for each in range(4)]
                )
        with ctx.bind_tenant("a"), ctx.bind_principal("me"):
            page = await query.find_snapshot(limit=2, share=True)
            assert [each.name for each in page.items] == ["a", "a"]
        with ctx.bind_tenant("b"), ctx.bind_principal("me"):
            with refused(ValidationError, "not a cursor of yours"):
                await query.find_snapshot(limit=2, after=page.next_cursor)
            mine = await query.find_snapshot(limit=2, share=True)
            assert [each.name for each in mine.items] == ["b", "b"]
        with ctx.bind_tenant("a"):
            with ctx.bind_principal("you"), refused(ValidationError, "not a cursor of yours"):
                await query.find_snapshot(limit=2, after=page.next_cursor)
            with refused(ValidationError, "not a cursor of yours"):
                await query.find_snapshot(limit=2, after=page.next_cursor)
        with refused(TenantRequired):
            await query.find_snapshot(limit=2)

    async def test_arguments_are_checked_before_anything(
        self, search_leg: SnapshotSearchLeg
    ) -> None:
        query = _query(search_leg)
        for limit in (0, -1, 1001):
            with refused(ValidationError, "limit"):
                await query.find_snapshot(limit=limit)
        with refused(ValidationError, "no field 'nothing'"):
            await query.find_snapshot({"nothing": 1})
        with refused(ValidationError, "no field 'nothing'"):
            await query.find_snapshot(sort=["-nothing"])
        with refused(ValidationError, "price"):
            await query.find_snapshot({"price": "many"})

    async def test_the_first_to_ask_may_be_cancelled(self, search_leg: SnapshotSearchLeg) -> None:
        await _items(search_leg, 4)
        query = _query(search_leg)
        tasks = [
            asyncio.create_task(query.find_snapshot(sort=["price"], limit=2, share=True))
            for _ in range(4)
        ]
        await asyncio.sleep(0)
        tasks[0].cancel()
        pages = await asyncio.gather(*tasks[1:])
        assert [_prices(each) for each in pages] == [[0, 1]] * 3
        assert len({each.next_cursor for each in pages}) == 1
