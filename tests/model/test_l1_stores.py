"""Each L1 store against a dict that remembers everything: what may be read, and what must be."""

from __future__ import annotations

from collections import OrderedDict
from datetime import timedelta
from random import Random
from typing import Any, ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from forze.application.integrations.document import LruL1Store, TinyLfuL1Store
from forze.application.integrations.document.l1.segments import Policy

TTL_S = 10.0
keys = st.one_of(st.integers(0, 12), st.tuples(st.just("tenant"), st.binary(max_size=1)))


class StoreMachine(RuleBasedStateMachine):
    """One store beside ``last``: the value and the deadline each key was last set with."""

    store: Any
    reached: ClassVar[set[str]]
    """What has happened in any run: a machine that never evicts shows nothing of it."""

    def __init_subclass__(cls) -> None:
        cls.reached = set()

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.serial = 0
        self.last: dict[object, tuple[int, float]] = {}
        self.read = [0, 0]
        self.crowded = False

    def make(self, capacity: int, seed: int) -> Any:
        raise NotImplementedError

    @initialize(capacity=st.integers(1, 8), seed=st.integers(0, 9))
    def begin(self, capacity: int, seed: int) -> None:
        self.capacity = capacity
        self.store = self.make(capacity, seed)

    def alive(self, key: object) -> bool:
        return key in self.last and self.now < self.last[key][1]

    @rule(key=keys)
    def get(self, key: object) -> None:
        value = self.store.get(key)
        self.read[value is None] += 1
        if value is None:
            assert not self.alive(key) or self.crowded, "lost though there was room"
            self.last.pop(key, None)
        else:
            assert self.alive(key), "expired or invalidated, and still served"
            assert value == self.last[key][0], "not the value set last"

    @rule(key=keys)
    def put(self, key: object) -> None:
        self.serial += 1
        self.store.set(key, self.serial)
        self.last[key] = (self.serial, self.now + TTL_S)
        self.crowded = self.crowded or len(self.last) > self.capacity

    @rule(key=keys)
    def put_and_get(self, key: object) -> None:
        self.put(key)
        assert self.store.get(key) == self.serial
        self.read[0] += 1

    @rule(key=keys)
    def invalidate(self, key: object) -> None:
        self.store.invalidate(key)
        self.last.pop(key, None)

    @rule(seconds=st.sampled_from([1.0, 9.0, 10.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def clear(self) -> None:
        self.store.clear()
        self.last.clear()
        self.crowded = False
        assert self.store.stats().size == 0

    @invariant()
    def counts_add_up(self) -> None:
        if not hasattr(self, "store"):
            return
        stats = self.store.stats()
        assert [stats.hits, stats.misses] == self.read
        assert stats.capacity == self.capacity
        self.reached.update(
            each for each in ("hits", "misses", "evictions") if getattr(stats, each)
        )
        assert 0 <= stats.size <= min(self.capacity, len(self.last))
        assert stats.evictions >= 0 if self.crowded else stats.size == len(self.last)
        assert not self.crowded or stats.evictions > 0


class LruMachine(StoreMachine):
    """The same, and the order is exactly that of use."""

    def make(self, capacity: int, seed: int) -> LruL1Store:
        self.order: OrderedDict[object, None] = OrderedDict()
        return LruL1Store(capacity=capacity, ttl=timedelta(seconds=TTL_S), clock=lambda: self.now)

    @rule(key=keys)
    def get(self, key: object) -> None:
        there = key in self.order and self.alive(key)
        assert (self.store.get(key) is not None) == there
        self.read[not there] += 1
        if there:
            self.order.move_to_end(key)
        else:
            self.order.pop(key, None)
            self.last.pop(key, None)

    @rule(key=keys)
    def put(self, key: object) -> None:
        super().put(key)
        self.order[key] = None
        self.order.move_to_end(key)
        if len(self.order) > self.capacity:
            self.order.popitem(last=False)

    @rule(key=keys)
    def invalidate(self, key: object) -> None:
        super().invalidate(key)
        self.order.pop(key, None)

    @rule()
    def clear(self) -> None:
        super().clear()
        self.order.clear()

    @invariant()
    def the_order_is_that_of_use(self) -> None:
        if hasattr(self, "store"):
            assert list(self.store._entries) == list(self.order)


class TinyLfuMachine(StoreMachine):
    """The same, under policies that change at any time, and with whole segments."""

    def make(self, capacity: int, seed: int) -> TinyLfuL1Store:
        return TinyLfuL1Store(
            capacity=capacity,
            ttl=timedelta(seconds=TTL_S),
            clock=lambda: self.now,
            random=Random(seed),
        )

    @rule(policy=st.sampled_from(Policy))
    def follow(self, policy: Policy) -> None:
        self.store._segments.follow(policy)

    @rule(key=keys, times=st.integers(1, 20))
    def read_often(self, key: object, times: int) -> None:
        for _ in range(times):
            self.get(key)

    @rule(start=st.integers(20, 1000), length=st.integers(1, 30))
    def scan(self, start: int, length: int) -> None:
        for key in range(start, start + length):
            self.get(key)
            self.put(key)

    @invariant()
    def segments_are_whole(self) -> None:
        if not hasattr(self, "store"):
            return
        segments = self.store._segments
        parts = [segments._window, segments._probation, segments._protected]
        held = [key for part in parts for key in part]
        assert len(held) == len(set(held)) == len(segments)
        assert set(held) <= set(self.last)
        assert segments._reused <= set(segments._window)
        for part in parts:
            for key, (value, dead_at) in part.items():
                assert (value, dead_at) == self.last[key]
        contest = self.store._contest
        assert len(contest._recent) <= contest._room
        for shadow in (contest._reuse, contest._frequency):
            assert len(shadow) <= shadow._capacity
            assert shadow._reused <= set(shadow._window)


@pytest.mark.parametrize("machine", [LruMachine, TinyLfuMachine])
def test_the_store_does_what_the_dict_allows(machine: type[StoreMachine]) -> None:
    run_state_machine_as_test(
        machine, settings=settings(max_examples=150, stateful_step_count=50, deadline=None)
    )
    assert machine.reached == {"hits", "misses", "evictions"}
