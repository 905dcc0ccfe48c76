"""The transaction scope: nesting, participants, and what a cancellation leaves behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from forze.application.contracts.transaction import (
    IsolationLevel,
    Outcome,
    Transaction,
    in_transaction,
    open_transactions,
    transaction_of,
)
from forze.application.execution.background import Background
from forze.application.execution.transaction import transaction_scope
from forze.errors import (
    BackendError,
    BackendTimeout,
    BackendUnavailable,
    ConflictError,
    TransactionDoomed,
)


class Resolver(Background):
    """Only what a scope asks of its surroundings."""

    def provide(self, key: Any, route: str | None = None) -> Any:
        raise AssertionError("a scope resolves nothing")


class Database:
    """A database that notes its sessions' ends; each can be held or made to fail."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.begun: list[tuple[IsolationLevel | None, bool]] = []
        self.hold: asyncio.Event | None = None
        self.fails: BaseException | None = None
        self.resolver = Resolver()

    async def begin(self, *, isolation: IsolationLevel | None, read_only: bool) -> Session:
        await asyncio.sleep(0)
        self.begun.append((isolation, read_only))
        self.events.append("begin")
        return Session(self)

    def scope(self, route: str = "things", **fields: Any) -> Any:
        return transaction_scope(self.resolver, route, self, **fields)

    async def ended(self) -> None:
        """Wait for what runs apart from its caller."""
        await asyncio.gather(*self.resolver._tasks, return_exceptions=True)


class Session:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def commit(self) -> None:
        await self._end("commit")

    async def rollback(self) -> None:
        await self._end("rollback")

    async def _end(self, how: str) -> None:
        database = self._database
        database.events.append(how)
        await asyncio.sleep(0)
        if database.hold is not None:
            await database.hold.wait()
        if how == "commit" and database.fails is not None:
            raise database.fails


class Participant:
    """Notes what it is told, in the database's log; can refuse at each point."""

    def __init__(self, database: Database, name: str, **fails: BaseException) -> None:
        self._events = database.events
        self._name = name
        self._fails = fails
        self.error: BackendError | None = None

    async def before_commit(self) -> None:
        self._events.append(f"{self._name} before")
        await asyncio.sleep(0)
        self._fail("before")

    def check_commit(self) -> None:
        self._events.append(f"{self._name} check")
        self._fail("check")

    async def after(self, outcome: Outcome, error: BackendError | None) -> None:
        self._events.append(f"{self._name} {outcome.value}")
        self.error = error
        await asyncio.sleep(0)
        self._fail("after")

    def _fail(self, at: str) -> None:
        if at in self._fails:
            raise self._fails[at]


def join(transaction: Transaction, *participants: Participant) -> None:
    for participant in participants:
        transaction.participants[id(participant)] = participant


async def test_a_block_commits_at_its_end() -> None:
    database = Database()
    async with database.scope(isolation="serializable", read_only=True) as transaction:
        assert database.events == ["begin"]
        assert transaction_of(database) is transaction
        assert open_transactions() == (transaction,)
        assert in_transaction()
    assert database.events == ["begin", "commit"]
    assert database.begun == [("serializable", True)]
    assert not in_transaction()
    assert transaction_of(database) is None


async def test_a_block_left_by_an_exception_rolls_back() -> None:
    database = Database()
    with pytest.raises(KeyError):
        async with database.scope():
            raise KeyError
    assert database.events == ["begin", "rollback"]
    assert not in_transaction()


async def test_nested_blocks_join() -> None:
    database = Database()
    async with database.scope() as outer:
        async with database.scope("another route") as inner:
            assert inner is outer
        async with database.scope():
            pass
        assert database.events == ["begin"]
        assert in_transaction()
    assert database.events == ["begin", "commit"]


async def test_blocks_on_two_databases_are_two_transactions() -> None:
    one, two = Database(), Database()
    async with one.scope() as outer, two.scope() as inner:
        assert open_transactions() == (outer, inner)
        assert transaction_of(one) is outer
        assert transaction_of(two) is inner
    assert (one.events, two.events) == (["begin", "commit"], ["begin", "commit"])


async def test_an_inner_failure_dooms_the_outer_block() -> None:
    database = Database()
    with pytest.raises(TransactionDoomed, match="'things'") as info:
        async with database.scope() as transaction:
            join(transaction, Participant(database, "p"))
            with pytest.raises(KeyError):
                async with database.scope():
                    raise KeyError
    assert database.events == ["begin", "rollback", "p rolled back"]
    assert info.value.route == "things"


async def test_a_nested_block_may_ask_for_the_same_isolation_only() -> None:
    database = Database()
    same: Any = {"isolation": "serializable"}
    async with database.scope(**same), database.scope(**same), database.scope():
        pass
    with pytest.raises(ConflictError, match=r"serializable inside .* the default isolation"):
        async with database.scope(), database.scope(**same):
            raise AssertionError("entered")
    assert database.events == ["begin", "commit", "begin", "rollback"]


async def test_participants_are_told_in_order_and_once() -> None:
    database = Database()
    async with database.scope() as transaction:
        join(transaction, Participant(database, "a"), Participant(database, "b"))
    assert database.events == [
        "begin",
        "a before",
        "b before",
        "a check",
        "b check",
        "commit",
        "a committed",
        "b committed",
    ]


async def test_a_rollback_asks_nobody_and_tells_everybody() -> None:
    database = Database()
    with pytest.raises(KeyError):
        async with database.scope() as transaction:
            join(transaction, Participant(database, "a"), Participant(database, "b"))
            raise KeyError
    assert database.events == ["begin", "rollback", "a rolled back", "b rolled back"]


@pytest.mark.parametrize("at", ["before", "check"])
async def test_a_participant_can_refuse_the_commit(at: str) -> None:
    database = Database()
    refusal = BackendUnavailable("not now", backend="cache")
    with pytest.raises(BackendUnavailable, match="not now"):
        async with database.scope() as transaction:
            join(transaction, Participant(database, "a", **{at: refusal}))
            join(transaction, Participant(database, "b"))
    assert "commit" not in database.events
    assert database.events[-3:] == ["rollback", "a rolled back", "b rolled back"]


async def test_nothing_is_awaited_between_the_last_check_and_the_commit() -> None:
    database = Database()
    async with database.scope() as transaction:
        join(transaction, Participant(database, "a"))
        asyncio.get_running_loop().call_soon(lambda: None)
    at = database.events.index("a check")
    assert database.events[at + 1] == "commit"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (BackendTimeout("lost", backend="postgres", outcome="unknown"), Outcome.UNKNOWN),
        (BackendUnavailable("down", backend="postgres"), Outcome.ROLLED_BACK),
        (ConflictError("serialization"), Outcome.ROLLED_BACK),
        (ValueError("a bug"), Outcome.ROLLED_BACK),
        (asyncio.CancelledError(), Outcome.UNKNOWN),
    ],
)
async def test_a_failed_commit_is_told_as_what_it_is(error: BaseException, told: Outcome) -> None:
    database = Database()
    database.fails = error
    participant = Participant(database, "a")
    with pytest.raises(type(error)):
        async with database.scope() as transaction:
            join(transaction, participant)
    assert database.events[-2:] == ["commit", f"a {told.value}"]
    assert participant.error is (error if isinstance(error, BackendError) else None)


async def test_everybody_is_told_before_a_participants_failure_is_raised() -> None:
    database = Database()
    stands = BackendUnavailable("not told", backend="cache", committed=True)
    with pytest.raises(BackendUnavailable, match="not told") as info:
        async with database.scope() as transaction:
            join(transaction, Participant(database, "a", after=stands))
            join(transaction, Participant(database, "b", after=OSError()))
            join(transaction, Participant(database, "c"))
    assert info.value.committed
    assert database.events[-3:] == ["a committed", "b committed", "c committed"]


async def test_another_task_is_not_inside_and_a_child_is() -> None:
    database = Database()
    entered, leave = asyncio.Event(), asyncio.Event()

    async def outside() -> bool:
        await entered.wait()
        return in_transaction()

    stranger = asyncio.create_task(outside())
    async with database.scope():
        entered.set()
        assert await stranger is False

        async def child() -> tuple[bool, bool]:
            before = in_transaction()
            await leave.wait()
            return before, in_transaction()

        inside = asyncio.create_task(child())
        await asyncio.sleep(0)
    leave.set()
    assert await inside == (True, False), "what outlives the block is outside"


async def test_a_nested_block_that_outlives_the_outer_one_fails_both() -> None:
    database = Database()
    leave = asyncio.Event()

    async def straggler() -> None:
        async with database.scope():
            await leave.wait()

    with pytest.raises(ConflictError, match="ended while a task begun in it"):
        async with database.scope():
            late = asyncio.create_task(straggler())
            await asyncio.sleep(0)
    leave.set()
    with pytest.raises(ConflictError, match="ended while a task begun in it"):
        await late
    assert database.events == ["begin", "rollback"]


Body = Callable[[Transaction], Awaitable[None]]


@asynccontextmanager
async def started(database: Database, body: Body) -> AsyncIterator[asyncio.Task[None]]:
    async def run() -> None:
        async with database.scope() as transaction:
            join(transaction, Participant(database, "a"))
            await body(transaction)

    task = asyncio.create_task(run())
    yield task
    await asyncio.wait({task})
    await database.ended()


async def _quick(transaction: Transaction) -> None:
    await asyncio.sleep(0)


async def test_a_cancellation_at_any_await_leaves_the_session_ended() -> None:
    seen = set()
    for turns in range(20):
        database = Database()
        async with started(database, _quick) as task:
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
        events = database.events
        seen.add(tuple(events))
        if events:
            assert events.count("commit") + events.count("rollback") == 1
            assert events[-2:] in (["commit", "a committed"], ["rollback", "a rolled back"])
    assert any("commit" in events for events in seen)
    assert any("rollback" in events for events in seen)


async def test_a_commit_that_was_begun_ends_although_the_caller_is_gone() -> None:
    database = Database()
    database.hold = asyncio.Event()
    async with started(database, _quick) as task:
        while "commit" not in database.events:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert database.events[-1] == "commit"
        database.hold.set()
    assert database.events[-1] == "a committed"


async def test_a_rollback_that_was_begun_ends_although_the_caller_is_gone() -> None:
    database = Database()
    database.hold = asyncio.Event()

    async def fails(transaction: Transaction) -> None:
        raise KeyError

    async with started(database, fails) as task:
        while "rollback" not in database.events:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        database.hold.set()
    assert database.events[-1] == "a rolled back"
