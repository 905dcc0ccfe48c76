"""Specs of locks refuse nonsense, names never meet, a lease is believed in while it may be."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forze.application.contracts.dlock import (
    AcquiredLock,
    DistributedLockSpec,
    ReadWriteLockSpec,
    SemaphoreSpec,
)
from forze.application.execution import DepsPlan, ExecutionRuntime
from forze.application.integrations.locks import lease as leases
from forze.application.integrations.locks.lease import Lease, believed_long, valid_until
from forze.application.integrations.locks.names import BESIDE, encode_name
from forze.errors import ConfigurationError, LockLost, ValidationError
from forze_memory import MemoryDepsModule
from forze_redis import RedisClient, RedisDepsModule, RedisDistributedLockConfig
from forze_redis.dlock import RedisLock
from forze_redis.keys import ResourceKeys
from forze_redis.semaphore import RedisSemaphore

SECOND = timedelta(seconds=1)


def test_specs_have_the_documented_defaults() -> None:
    assert DistributedLockSpec(name="jobs").ttl == timedelta(seconds=30)
    assert SemaphoreSpec(name="slots", permits=3).ttl == timedelta(seconds=30)
    assert ReadWriteLockSpec(name="pages").ttl == timedelta(seconds=30)
    assert AcquiredLock("k", "one", 7) == AcquiredLock(key="k", owner="one", token=7)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: DistributedLockSpec(name=""), "name"),
        (lambda: DistributedLockSpec(name="jobs", ttl=timedelta(0)), "ttl"),
        (lambda: DistributedLockSpec(name="jobs", ttl=timedelta(milliseconds=9)), "10 ms"),
        (lambda: DistributedLockSpec(name="jobs", ttl=30), "timedelta"),  # type: ignore[arg-type]
        (lambda: SemaphoreSpec(name="slots", permits=0), "permits"),
        (lambda: SemaphoreSpec(name="slots", permits=True), "permits"),
        (lambda: SemaphoreSpec(name="slots", permits=1, ttl=-SECOND), "ttl"),
        (lambda: ReadWriteLockSpec(name="", ttl=SECOND), "name"),
    ],
)
def test_nonsense_is_refused(make: Callable[[], object], word: str) -> None:
    with pytest.raises(ConfigurationError, match=word):
        make()


async def test_names_that_are_not_registered() -> None:
    configs: dict[str, Any] = {"jobs": {"namespace": "app:jobs"}}
    module = RedisDepsModule(client=RedisClient(), dlocks=configs)
    async with ExecutionRuntime(deps=DepsPlan.from_modules(module)).scope() as ctx:
        assert ctx.dlock_scope(DistributedLockSpec(name="jobs")) is not None
        for ask in (
            lambda: ctx.dlock(DistributedLockSpec(name="other")),
            lambda: ctx.semaphore(SemaphoreSpec(name="jobs", permits=1)),
            lambda: ctx.rwlock(ReadWriteLockSpec(name="jobs")),
        ):
            with pytest.raises(ConfigurationError):
                ask()
    with pytest.raises(ConfigurationError, match="tenants"):
        RedisDepsModule(
            client=RedisClient(), semaphores={"slots": {"namespace": "n", "tenants": True}}
        )


async def test_one_name_is_one_spec() -> None:
    spec = DistributedLockSpec(name="jobs")
    runtime = ExecutionRuntime(deps=DepsPlan.from_modules(MemoryDepsModule()), specs=[spec])
    async with runtime.scope() as ctx:
        assert ctx.dlock(spec) is ctx.dlock(DistributedLockSpec(name="jobs"))
        with pytest.raises(ConfigurationError, match="jobs"):
            ctx.dlock(DistributedLockSpec(name="jobs", ttl=SECOND))


# -- names ---------------------------------------------------------------------


class _Clustered(RedisClient):
    def __init__(self) -> None:
        super().__init__()
        self.clustered = True


pieces = st.sampled_from([":", "%", "3A", "%3A", "/", "{", "}", "a", "b", "|", *sorted(BESIDE)])
names = st.one_of(st.lists(pieces, min_size=1, max_size=7).map("".join), st.text(min_size=1))


def keys_of(client: RedisClient, name: str) -> set[str]:
    """Every key and channel that a lock, or a semaphore, of this name has."""
    config = RedisDistributedLockConfig(namespace="app:jobs")
    key = ResourceKeys(client, config, "lock 'jobs'").of(encode_name(name))
    lock = RedisLock(client, key, 1000, shared=False)
    slots = RedisSemaphore(client, key, 1000, 1)
    return {*lock._state, *slots._state, lock._fence, *lock._line}


@pytest.mark.parametrize("client", [RedisClient(), _Clustered()], ids=["server", "cluster"])
def test_no_lock_has_a_key_of_another(client: RedisClient) -> None:
    seen: dict[str, str] = {}

    @settings(max_examples=2000, deadline=None)
    @given(name=names)
    def check(name: str) -> None:
        try:
            keys = keys_of(client, name)
        except ValidationError:
            return
        assert len(keys) == 6
        for key in keys:
            assert seen.setdefault(key, name) == name

    check()
    assert len(set(seen.values())) > 500


def test_ordinary_names_stand_as_they_are() -> None:
    for name in ("invoice:42", "a:b:c", "fence", "fence:1", "a:fences"):
        assert encode_name(name) == name
    assert encode_name("invoice:fence") == "invoice%3Afence"
    with pytest.raises(ValidationError):
        encode_name("")


# -- belief --------------------------------------------------------------------


def test_a_lease_is_believed_in_for_less_than_it_lasts() -> None:
    assert valid_until(100.0, 30.0) == pytest.approx(129.4)
    assert believed_long(100.0, 100.0, 30.0)
    assert believed_long(100.0, 114.0, 30.0)
    assert not believed_long(100.0, 115.0, 30.0)


class _Standing:
    """A lock on a server where it is ten o'clock."""

    look_seconds = 0.5

    @staticmethod
    def clock() -> float:
        return 10.0


@pytest.mark.parametrize("awaits", [False, True])
async def test_a_lease_that_was_over_before_its_block_began(awaits: bool) -> None:
    """The process stood still in between: the loss is told once, and no cancellation is left."""
    stored: Any = _Standing()
    acquired = AcquiredLock("k", "one", 7)
    lease = Lease(stored, acquired, resource="lock 'jobs'", sent=0.0, ttl_seconds=1.0)
    error: BaseException | None = None
    lease.begin(heartbeat=False)
    if awaits:
        with pytest.raises(asyncio.CancelledError) as cancelled:
            await asyncio.Event().wait()
        error = cancelled.value
    assert not lease.end()
    assert isinstance(lease.verdict(error), LockLost)
    await asyncio.sleep(0)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


class _Wound:
    """A lock on a server whose clock is wound by hand; it extends until told not to answer."""

    look_seconds = 0.002

    def __init__(self) -> None:
        self.now = 10.0
        self.asked = 0
        self.answers = asyncio.Event()
        self.answers.set()

    def clock(self) -> float:
        return self.now

    async def extend(self, owner: str, token: int | None) -> bool:
        self.asked += 1
        await self.answers.wait()
        return True


def lease_of(stored: Any, *, ttl_seconds: float = 60.0) -> Lease:
    """What was granted at this moment."""
    acquired = AcquiredLock("k", "one", 7)
    sent = stored.clock()
    return Lease(stored, acquired, resource="lock 'jobs'", sent=sent, ttl_seconds=ttl_seconds)


async def test_the_first_heartbeat_is_due_by_the_clock_of_the_lease() -> None:
    """The machine slept meanwhile: the event loop's clock says that there is time."""
    stored = _Wound()
    lease = lease_of(stored)
    lease.begin(heartbeat=True)
    await asyncio.sleep(0.01)
    assert stored.asked == 0
    stored.now += 20.0
    async with asyncio.timeout(1):
        while lease.remaining < 50.0:
            await asyncio.sleep(0.001)
    assert stored.asked == 1
    assert lease.end()


async def test_a_block_that_ends_during_its_first_heartbeat() -> None:
    stored = _Wound()
    for begun in (False, True):
        stored.asked = 0
        stored.answers.clear()
        lease = lease_of(stored)
        lease.begin(heartbeat=True)
        stored.now += 20.0
        async with asyncio.timeout(1):
            while lease._beating is None or (begun and not stored.asked):
                await asyncio.sleep(0)
        beating = lease._beating
        assert lease.end()
        assert lease.verdict(None) is not None
        stored.answers.set()
        await asyncio.wait({beating})
        assert beating.cancelled()
        assert stored.asked == begun
        assert lease.remaining == 0.0


@pytest.mark.parametrize("asked", ["before", "after"])
@pytest.mark.parametrize("how", ["ended", "lost"])
async def test_whoever_asks_for_the_end_sees_it(asked: str, how: str) -> None:
    """Also in a thread, and whether or not anybody asked for it before it came."""
    lease = lease_of(_Standing())
    events: list[threading.Event] = []

    async def block() -> None:
        lease.begin(heartbeat=False)
        if asked == "before":
            events.append(lease.lost)
            assert not lease.lost.is_set()
        if how == "ended":
            lease.end()
        else:
            lease.lose("it was removed")

    await asyncio.wait({asyncio.ensure_future(block())})
    events += [await asyncio.to_thread(lambda: lease.lost), lease.lost]
    assert all(each is events[0] for each in events)
    assert events[0].is_set()


def test_threads_that_ask_at_once_have_one_event(monkeypatch: pytest.MonkeyPatch) -> None:
    both = threading.Barrier(2)

    class Slow(threading.Event):
        def __init__(self) -> None:
            super().__init__()
            both.wait(5)  # neither of them has it when the other begins

    monkeypatch.setattr(leases, "threading", SimpleNamespace(Event=Slow))
    lease = lease_of(_Standing())
    seen: list[threading.Event] = []
    threads = [threading.Thread(target=lambda: seen.append(lease.lost)) for _ in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(5)
    assert seen == [lease.lost] * 2


def test_the_block_of_one_lease_may_end_while_another_is_asked_for_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Garbage is collected anywhere, and a block that is part of it ends there."""
    other = lease_of(_Standing())

    class Collecting(threading.Event):
        def __init__(self) -> None:
            monkeypatch.undo()
            assert not other.lost.is_set()
            super().__init__()

    monkeypatch.setattr(leases, "threading", SimpleNamespace(Event=Collecting))
    lease = lease_of(_Standing())
    asking = threading.Thread(target=lambda: lease.lost, daemon=True)
    asking.start()
    asking.join(5)
    assert not asking.is_alive()


async def test_two_runtimes_over_one_memory_share_their_locks() -> None:
    spec, memory = DistributedLockSpec(name="jobs"), MemoryDepsModule()
    one, two, apart = (
        ExecutionRuntime(deps=DepsPlan.from_modules(each))
        for each in (memory, memory, MemoryDepsModule())
    )
    async with one.scope() as ctx, two.scope() as other, apart.scope() as alone:
        acquired = await ctx.dlock(spec).acquire("k", "one")
        assert acquired is not None
        assert await other.dlock(spec).get_owner("k") == "one"
        assert await other.dlock(spec).acquire("k", "two") is None
        assert not await alone.dlock(spec).is_locked("k")
