"""The tree of errors: what each says, carries, and survives."""

from __future__ import annotations

import pickle
import traceback
from datetime import timedelta

import pytest

from forze import errors
from forze.errors import (
    BackendCorrupt,
    BackendError,
    BackendTimeout,
    BackendUnavailable,
    BulkheadFull,
    CallTimeout,
    CircuitOpen,
    ConfigurationError,
    ConflictError,
    FencedOut,
    ForzeError,
    IdempotencyInProgress,
    IdempotencyMismatch,
    LockLost,
    LockNotAcquired,
    NotFoundError,
    RevisionMismatch,
    SnapshotGone,
    TenantRequired,
    Throttled,
    TransactionDoomed,
    ValidationError,
)

EVERY: list[ForzeError] = [
    ConfigurationError("no cache 'a'", name="a", known=["c", "b"]),
    ValidationError("ttl must be above zero", field="ttl"),
    NotFoundError("items: no document 1", resource="items", ids=[1, 2]),
    SnapshotGone(resource="items", run_id="r1"),
    ConflictError("items: duplicate id", resource="items"),
    RevisionMismatch(resource="items", id=7, expected=1, current=3),
    TransactionDoomed("items"),
    FencedOut(resource="invoices", id=42, token=7),
    LockNotAcquired("held", resource="lock 'jobs'", key="a", retry_after=timedelta(seconds=3)),
    IdempotencyInProgress(operation="pay", key="k", retry_after=timedelta(seconds=1)),
    IdempotencyMismatch(operation="pay", key="k"),
    LockLost("lapsed", resource="lock 'jobs'", key="a"),
    TenantRequired("cache 'a'"),
    Throttled("too many", retry_after=timedelta(seconds=2)),
    CircuitOpen(policy="payments", route="eu", retry_after=timedelta(seconds=2)),
    BulkheadFull(policy="payments", max_concurrent=4, waited=timedelta(seconds=1)),
    CallTimeout(policy="payments", timeout=timedelta(seconds=2)),
    BackendTimeout("no answer", backend="redis", outcome="unknown"),
    BackendUnavailable("down", backend="redis", committed=True),
    BackendCorrupt("not JSON", backend="cache"),
]

each = pytest.mark.parametrize("error", EVERY, ids=lambda error: type(error).__name__)


def test_every_class_is_tried_here() -> None:
    def below(cls: type[ForzeError]) -> set[type[ForzeError]]:
        return {cls}.union(*(below(sub) for sub in cls.__subclasses__()))

    ours = {cls for cls in below(ForzeError) if cls.__module__ == errors.__name__}
    assert ours - {type(error) for error in EVERY} == {ForzeError, BackendError}


@each
def test_it_comes_through_a_pickle_whole(error: ForzeError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error) == error.message
    assert vars(copy) == vars(error)


def test_a_question_for_this_process_stays_here() -> None:
    error = BackendUnavailable("lost", backend="postgres", outcome="unknown")

    async def still_running() -> bool:
        return True

    error.still_running = still_running
    copy = pickle.loads(pickle.dumps(error))
    assert copy.still_running is None
    assert copy.outcome == "unknown"
    assert error.still_running is still_running
    assert error.again().still_running is still_running


@each
def test_again_is_an_equal_error_with_a_traceback_of_its_own(error: ForzeError) -> None:
    def first() -> None:
        raise error

    with pytest.raises(ForzeError):
        first()
    twin = error.again()
    assert twin is not error
    assert type(twin) is type(error)
    assert vars(twin) == vars(error)
    assert str(twin) == str(error)
    assert twin.__traceback__ is None
    assert twin.__cause__ is error
    with pytest.raises(ForzeError):
        raise twin
    assert "first" not in [frame.name for frame in traceback.extract_tb(twin.__traceback__)]
    error.__traceback__ = None


def test_texts_say_what_where_and_what_to_do() -> None:
    stale = RevisionMismatch(resource="items", id="x7", expected=1, current=3)
    for word in ("items", "x7", "rev 1", "3", "read the document again"):
        assert word in str(stale)
    doomed = TransactionDoomed("orders")
    for word in ("orders", "rolled back", "nested", "exception"):
        assert word in str(doomed)
    tenant = TenantRequired("cache 'things'")
    for word in ("cache 'things'", "tenant", "bind_tenant"):
        assert word in str(tenant)


def test_a_refusal_says_until_when_and_a_timeout_what_it_leaves_open() -> None:
    soon = CircuitOpen(policy="payments", route="eu", retry_after=timedelta(seconds=2.5))
    for word in ("payments", "eu", "not made", "2.5 s"):
        assert word in str(soon)
    assert "by hand" in str(CircuitOpen(policy="payments"))
    assert "queue is full" in str(BulkheadFull(policy="payments", max_concurrent=4))
    waited = BulkheadFull(policy="payments", max_concurrent=4, waited=timedelta(seconds=1))
    for word in ("4 calls", "for 1 s", "max_concurrent"):
        assert word in str(waited)
    late = CallTimeout(policy="payments", timeout=timedelta(seconds=2))
    for word in ("payments", "2 s", "unknown", "retry_unknown"):
        assert word in str(late)
    assert "deadline" in str(
        CallTimeout(policy="payments", timeout=timedelta(seconds=2), at_deadline=True)
    )


def test_what_they_carry() -> None:
    assert ConfigurationError("m", name="a", known={"c", "b"}).known == ("b", "c")
    assert NotFoundError("m", resource="r", ids=[1]).ids == ("1",)
    stale = RevisionMismatch(resource="items", id=7, expected=1, current=3)
    assert (stale.id, stale.expected, stale.current, stale.resource) == ("7", 1, 3, "items")
    assert Throttled("m", retry_after=timedelta(seconds=2)).retry_after == timedelta(seconds=2)


def test_what_can_be_retried_unchanged() -> None:
    assert {type(error).__name__ for error in EVERY if error.retryable} == {
        "Throttled",
        "CircuitOpen",
        "BulkheadFull",
        "CallTimeout",
        "LockNotAcquired",
        "LockLost",
        "IdempotencyInProgress",
        "BackendTimeout",
        "BackendUnavailable",
    }


def test_the_three_outcomes_of_a_write() -> None:
    nothing = BackendUnavailable("m", backend="b")
    unknown = BackendTimeout("m", backend="b", outcome="unknown")
    stands = BackendUnavailable("m", backend="b", committed=True)
    assert [(each.outcome, each.committed) for each in (nothing, unknown, stands)] == [
        ("none", False),
        ("unknown", False),
        ("committed", True),
    ]
