"""The script of counters does on a real server what integers do in Python."""

from __future__ import annotations

from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from forze.application.contracts.counter import INT64_MAX, INT64_MIN
from forze.application.integrations.counting import Change
from forze_redis.counter import COUNT

KEY = "app:seq"
REMEMBERED_MS = 60_000
EDGES = [0, 1, 9, 10, 99, 100, 2**53, 2**53 + 1, 10**18, 2**62, INT64_MAX - 1, INT64_MAX]

numbers = st.sampled_from([*EDGES, *(-each for each in EDGES), INT64_MIN]) | st.integers(-20, 20)
bounds = st.sampled_from([INT64_MIN, -(2**53), -10, 0, 10, 2**53, INT64_MAX])
operations = st.sampled_from([None, "a", "b"])
not_integers = st.sampled_from(
    ["", "x", "1.5", "1e3", "007", "-0", "+5", " 5", "5 ", "-", "9223372036854775808",
     "-9223372036854775809", "9" * 30, "nan", "0x10"]
)  # fmt: skip


class CounterMachine(RuleBasedStateMachine):
    """One counter and two operations on the server, beside an integer and a dict."""

    server: redis.Redis

    def __init__(self) -> None:
        super().__init__()
        self.server.flushall()
        self.value = 0
        self.done: dict[str, tuple[str, int]] = {}

    def call(self, change: Change, operation: str | None, what: str) -> Any:
        keys = [KEY] if operation is None else [KEY, f"{KEY}!{operation}"]
        limit = "" if change.limit is None else change.limit
        return self.server.eval(
            COUNT.source, len(keys), *keys, change.by, limit, what, REMEMBERED_MS
        )

    @rule(by=numbers, bound=bounds, operation=operations, kind=st.sampled_from(["incr", "decr"]))
    def change(self, by: int, bound: int, operation: str | None, kind: str) -> None:
        change = Change(by, bound - by if by else None)
        what = f"{kind} {by}"
        verdict, text = self.call(change, operation, what)
        before = None if operation is None else self.done.get(operation)
        if before is not None and before[0] != what:
            assert (verdict, text.decode()) == (3, before[0])
        elif before is not None:
            assert (verdict, int(text)) == (2, before[1])
        elif (by > 0 and self.value + by > bound) or (by < 0 and self.value + by < bound):
            assert (verdict, int(text)) == (0, self.value)
        else:
            self.value += by
            assert (verdict, int(text)) == (1, self.value)
            if operation is not None:
                self.done[operation] = what, self.value

    @rule(by=numbers)
    def plain(self, by: int) -> None:
        if INT64_MIN <= self.value + by <= INT64_MAX:
            self.value += by
            assert self.server.incrby(KEY, by) == self.value
        else:
            with pytest.raises(redis.ResponseError, match="overflow"):
                self.server.incrby(KEY, by)

    @rule(value=numbers)
    def reset(self, value: int) -> None:
        self.server.set(KEY, value)
        self.value = value

    @rule(operation=st.sampled_from(["a", "b"]))
    def forget(self, operation: str) -> None:
        self.server.delete(f"{KEY}!{operation}")
        self.done.pop(operation, None)

    @rule()
    def evict(self) -> None:
        self.server.delete(KEY)
        self.value = 0

    @rule(stored=not_integers, by=numbers, operation=operations)
    def corrupt(self, stored: str, by: int, operation: str | None) -> None:
        """What is no integer is said to be none, and stays as it is."""
        if operation in self.done:
            return
        self.server.set(KEY, stored)
        with pytest.raises(redis.ResponseError, match="not an integer"):
            self.call(Change(by, None), operation, "incr")
        assert self.server.get(KEY) == stored.encode()
        self.reset(0)

    @rule()
    def script_flush(self) -> None:
        self.server.script_flush()

    @invariant()
    def same_state(self) -> None:
        assert int(self.server.get(KEY) or 0) == self.value
        assert self.server.pttl(KEY) in (-1, -2), "a counter never expires"
        for operation in ("a", "b"):
            record = self.server.get(f"{KEY}!{operation}")
            assert (record is not None) is (operation in self.done)
            if record is not None:
                assert 0 < self.server.pttl(f"{KEY}!{operation}") <= REMEMBERED_MS


def test_the_script_counts_as_integers_do(redis_dsn: str) -> None:
    with redis.Redis.from_url(redis_dsn) as server:
        machine = type("Machine", (CounterMachine,), {"server": server})
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=60,
                stateful_step_count=40,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )


def test_numbers_are_compared_as_numbers(redis_dsn: str) -> None:
    """Each pair of edges, as old value and as limit: neither text nor floating point order."""
    edges = sorted({*EDGES, *(-each for each in EDGES), INT64_MIN, 2**53 - 1, 2, -2, 19, -19})
    with redis.Redis.from_url(redis_dsn) as server:
        for old in edges:
            for limit in (*edges, 10**30, -(10**30)):
                for by in (1, -1):
                    change = Change(by, limit)
                    if not INT64_MIN <= old + by <= INT64_MAX:
                        continue
                    server.set(KEY, old)
                    verdict, _ = server.eval(COUNT.source, 1, KEY, by, limit, "", 0)
                    assert bool(verdict) is change.fits(old), (old, limit, by)


def test_another_type_of_value_is_left_alone(redis_dsn: str) -> None:
    with redis.Redis.from_url(redis_dsn) as server:
        server.rpush(KEY, "a")
        with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
            server.eval(COUNT.source, 2, KEY, f"{KEY}!a", 1, "", "incr 1", REMEMBERED_MS)
        assert server.lrange(KEY, 0, -1) == [b"a"]
        assert not server.exists(f"{KEY}!a")
