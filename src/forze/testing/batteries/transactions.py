"""What every ``TransactionManager`` does, seen through ``ctx.transaction`` and documents."""

from __future__ import annotations

import asyncio

from forze.application.contracts.document import DocumentCommandPort, DocumentQueryPort
from forze.application.contracts.transaction import in_transaction, open_transactions
from forze.application.execution import ExecutionContext
from forze.domain.models import uuid7
from forze.errors import ConflictError, NotFoundError, RevisionMismatch, TransactionDoomed
from forze.testing.batteries.items import ITEMS, ItemCreate, ItemRead, ItemUpdate
from forze.testing.batteries.legs import DocumentLeg, apart, cancelled, waits
from forze.testing.batteries.refusals import refused

Query = DocumentQueryPort[ItemRead]
Command = DocumentCommandPort[ItemRead, ItemCreate, ItemUpdate]


def _ports(ctx: ExecutionContext) -> tuple[Query, Command]:
    return ctx.document.query(ITEMS), ctx.document.command(ITEMS)


async def _item(command: Command, price: int = 1) -> ItemRead:
    return await command.create(ItemCreate(name="item", price=price))


async def _price(query: Query, item: ItemRead) -> int:
    return (await query.get(item.id)).price


async def _set(command: Command, item: ItemRead, rev: int, price: int) -> ItemRead:
    return await command.update(item.id, rev, ItemUpdate(price=price))


class TransactionBehaviour:
    """Commit, rollback, nesting, and what others see meanwhile."""

    async def test_a_block_commits_when_it_ends(self, document_leg: DocumentLeg) -> None:
        query, command = _ports(document_leg.ctx)
        elsewhere, _ = _ports(document_leg.other)
        item = await _item(command)
        assert await _price(elsewhere, item) == 1
        async with document_leg.ctx.transaction("items"):
            await _set(command, item, 1, 2)
            created = await _item(command, 7)
            assert await _price(query, item) == 2
            assert await _price(query, created) == 7
            assert await query.count() == 2
            assert [each.price for each in await query.get_many([created.id, item.id])] == [7, 2]
            assert await apart(_price(elsewhere, item)) == 1
            with refused(NotFoundError):
                await apart(_price(elsewhere, created))
        for each in (query, elsewhere):
            assert await _price(each, item) == 2
            assert await _price(each, created) == 7

    async def test_a_block_left_by_an_exception_leaves_no_trace(
        self, document_leg: DocumentLeg
    ) -> None:
        query, command = _ports(document_leg.ctx)
        item, other = await _item(command), await _item(command)
        await query.get_many([item.id, other.id])
        with refused(KeyError):
            async with document_leg.ctx.transaction("items"):
                await _set(command, item, 1, 2)
                await command.kill(other.id)
                created = await _item(command)
                raise KeyError
        for each in (query, _ports(document_leg.other)[0]):
            assert await each.get_many([item.id, other.id]) == [item, other]
            with refused(NotFoundError):
                await each.get(created.id)
        assert (await _set(command, item, 1, 3)).rev == 2

    async def test_nested_blocks_are_one_transaction(self, document_leg: DocumentLeg) -> None:
        query, command = _ports(document_leg.ctx)
        elsewhere, _ = _ports(document_leg.other)
        item = await _item(command)
        async with document_leg.ctx.transaction("items") as outer:
            await _set(command, item, 1, 2)
            async with document_leg.ctx.transaction("items") as inner:
                assert inner is outer
                assert await _price(query, item) == 2
                await _set(command, item, 2, 3)
            assert await apart(_price(elsewhere, item)) == 1
        assert await _price(elsewhere, item) == 3

    async def test_a_failed_inner_block_dooms_the_outer_one(
        self, document_leg: DocumentLeg
    ) -> None:
        query, command = _ports(document_leg.ctx)
        item = await _item(command)
        with refused(TransactionDoomed, "items"):
            async with document_leg.ctx.transaction("items"):
                await _set(command, item, 1, 2)
                with refused(KeyError):
                    async with document_leg.ctx.transaction("items"):
                        raise KeyError
        assert await _price(query, item) == 1
        assert (await _set(command, item, 1, 3)).rev == 2

    async def test_the_outer_exception_is_the_one_that_is_raised(
        self, document_leg: DocumentLeg
    ) -> None:
        _, command = _ports(document_leg.ctx)
        with refused(ValueError, "outer"):
            async with document_leg.ctx.transaction("items"):
                await _item(command)
                with refused(KeyError):
                    async with document_leg.ctx.transaction("items"):
                        raise KeyError
                raise ValueError("outer")

    async def test_one_after_the_other(self, document_leg: DocumentLeg) -> None:
        query, command = _ports(document_leg.ctx)
        item = await _item(command, 0)
        for turn in range(5):
            async with document_leg.ctx.transaction("items"):
                await _set(command, item, turn + 1, turn + 1)
            assert not in_transaction()
            assert await _price(query, item) == turn + 1

    async def test_other_tasks_are_outside(self, document_leg: DocumentLeg) -> None:
        query, command = _ports(document_leg.ctx)
        async with document_leg.ctx.transaction("items"):
            item = await _item(command)

            async def outside() -> int:
                return len(open_transactions())

            assert len(open_transactions()) == 1
            assert await apart(outside()) == 0
        assert await _price(query, item) == 1

    async def test_for_update_inside(self, document_leg: DocumentLeg) -> None:
        query, command = _ports(document_leg.ctx)
        _, elsewhere = _ports(document_leg.other)
        item = await _item(command)
        async with document_leg.ctx.transaction("items"):
            assert (await query.get(item.id, for_update=True)) == item
            late = apart(_set(elsewhere, item, 1, 9))
            assert await waits(late)
            await _set(command, item, 1, 2)
        with refused(RevisionMismatch) as caught:
            await late
        assert caught.error.current == 2
        assert await _price(query, item) == 2

    async def test_read_committed_sees_what_others_commit(self, document_leg: DocumentLeg) -> None:
        query, command = _ports(document_leg.ctx)
        _, elsewhere = _ports(document_leg.other)
        item = await _item(command)
        async with document_leg.ctx.transaction("items", isolation="read committed"):
            assert await _price(query, item) == 1
            await apart(_set(elsewhere, item, 1, 2))
            assert await _price(query, item) == 2
            assert (await _set(command, item, 2, 3)).rev == 3

    async def test_repeatable_read_sees_one_state(self, document_leg: DocumentLeg) -> None:
        query, command = _ports(document_leg.ctx)
        _, elsewhere = _ports(document_leg.other)
        item = await _item(command)
        async with document_leg.ctx.transaction("items", isolation="repeatable read"):
            assert await _price(query, item) == 1
            await apart(_set(elsewhere, item, 1, 2))
            await apart(_item(elsewhere))
            assert await _price(query, item) == 1
            assert await query.count() == 1
        assert await _price(query, item) == 2, "nothing of the old state was cached"
        assert await query.count() == 2

    async def test_read_only_blocks_read(self, document_leg: DocumentLeg) -> None:
        query, command = _ports(document_leg.ctx)
        item = await _item(command)
        async with document_leg.ctx.transaction("items", read_only=True):
            assert await query.get(item.id) == item


class TransactionFailures:
    """Conflicts, failed statements, callers that go away."""

    async def test_repeatable_read_refuses_a_lost_update(self, document_leg: DocumentLeg) -> None:
        query, command = _ports(document_leg.ctx)
        _, elsewhere = _ports(document_leg.other)
        item = await _item(command)
        with refused(ConflictError, "retry"):
            async with document_leg.ctx.transaction("items", isolation="repeatable read"):
                await query.get(item.id)
                await apart(_set(elsewhere, item, 1, 2))
                await _set(command, item, 1, 3)
        assert await _price(query, item) == 2

    async def test_serializable_refuses_write_skew(self, document_leg: DocumentLeg) -> None:
        query, command = _ports(document_leg.ctx)
        one, two = await _item(command), await _item(command)
        both_read, read = asyncio.Event(), [0]

        async def take(mine: ItemRead) -> None:
            async with document_leg.ctx.transaction("items", isolation="serializable"):
                seen = await query.find_many({"price": 1}, limit=10)
                assert len(seen.items) == 2
                read[0] += 1
                if read[0] == 2:
                    both_read.set()
                await both_read.wait()
                await _set(command, mine, 1, 0)

        ended = await asyncio.gather(apart(take(one)), apart(take(two)), return_exceptions=True)
        failures = [each for each in ended if each is not None]
        assert [type(each) for each in failures] == [ConflictError]
        assert "retry" in str(failures[0])
        assert await query.count({"price": 1}) == 1

    async def test_an_inner_block_cannot_change_the_isolation(
        self, document_leg: DocumentLeg
    ) -> None:
        with refused(ConflictError, "serializable"):
            async with (
                document_leg.ctx.transaction("items", isolation="read committed"),
                document_leg.ctx.transaction("items", isolation="serializable"),
            ):
                raise AssertionError("entered")

    async def test_a_read_only_block_refuses_writes(self, document_leg: DocumentLeg) -> None:
        query, command = _ports(document_leg.ctx)
        item = await _item(command)
        with refused(ConflictError, "read-only"):
            async with document_leg.ctx.transaction("items", read_only=True):
                await _set(command, item, 1, 2)
        assert await _price(query, item) == 1

    async def test_a_caught_conflict_never_ends_in_a_silent_rollback(
        self, document_leg: DocumentLeg
    ) -> None:
        query, command = _ports(document_leg.ctx)
        item = await _item(command)
        with refused(ConflictError):
            async with document_leg.ctx.transaction("items"):
                await _set(command, item, 1, 2)
                with refused(ConflictError, str(item.id)):
                    await command.create(ItemCreate(id=item.id, name="twice", price=1))
        assert await _price(query, item) == 1

    async def test_a_caught_stale_rev_leaves_the_block_usable(
        self, document_leg: DocumentLeg
    ) -> None:
        query, command = _ports(document_leg.ctx)
        item = await _item(command)
        async with document_leg.ctx.transaction("items"):
            with refused(RevisionMismatch) as caught:
                await _set(command, item, 9, 2)
            with refused(NotFoundError):
                await command.kill(uuid7())
            await _set(command, item, caught.error.current, 3)
        assert await _price(query, item) == 3

    async def test_a_deadlock_fails_one_of_the_two(self, document_leg: DocumentLeg) -> None:
        query, command = _ports(document_leg.ctx)
        one, two = await _item(command), await _item(command)
        both, held = asyncio.Event(), [0]

        async def lock(first: ItemRead, second: ItemRead) -> None:
            async with document_leg.ctx.transaction("items"):
                await _set(command, first, 1, 2)
                held[0] += 1
                if held[0] == 2:
                    both.set()
                await both.wait()
                current = await query.get(second.id)
                await _set(command, second, current.rev, 3)

        ended = await asyncio.gather(
            apart(lock(one, two)), apart(lock(two, one)), return_exceptions=True
        )
        failures = [each for each in ended if each is not None]
        # The one that is let through finds the other's document as it was.
        assert [type(each) for each in failures] == [ConflictError]
        assert "retry" in str(failures[0])
        assert sorted([await _price(query, one), await _price(query, two)]) == [2, 3]

    async def test_a_cancelled_block_leaves_no_trace(self, document_leg: DocumentLeg) -> None:
        query, command = _ports(document_leg.ctx)
        item = await _item(command)
        written, never = asyncio.Event(), asyncio.Event()

        async def block() -> None:
            async with document_leg.ctx.transaction("items"):
                await _set(command, item, 1, 2)
                written.set()
                await never.wait()

        task = apart(block())
        await written.wait()
        assert await cancelled(task)
        assert await _price(query, item) == 1
        assert (await _set(command, item, 1, 3)).rev == 2

    async def test_a_block_cancelled_at_any_await_is_whole(self, document_leg: DocumentLeg) -> None:
        query, command = _ports(document_leg.ctx)
        elsewhere, _ = _ports(document_leg.other)
        for turns in range(0, 40, 3):
            one, two = await _item(command), await _item(command)
            await query.get_many([one.id, two.id])

            async def block(one: ItemRead = one, two: ItemRead = two) -> None:
                async with document_leg.ctx.transaction("items"):
                    await _set(command, one, 1, 2)
                    await _set(command, two, 1, 2)

            task = apart(block())
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait({task})
            # What the caller was told about is not open any more: nobody waits on its rows.
            after = [await command.touch(each.id) for each in (one, two)]
            assert after[0].price == after[1].price
            assert [(await elsewhere.get(each.id)).rev for each in (one, two)] == [
                each.rev for each in after
            ]
