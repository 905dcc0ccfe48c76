"""Specs of locks refuse nonsense, names never meet, a lease is believed in while it may be."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
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
