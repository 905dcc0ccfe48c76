"""The scripts of limits and circuits do on a real server what the pure machines do in Python.

Time passes by shifting what is stored into the past. The server's own time goes on meanwhile, so
everything here takes minutes at least, and what is compared never hangs on less.
"""

from __future__ import annotations

from datetime import timedelta
from fractions import Fraction
from itertools import count
from typing import Any, ClassVar

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from forze.application.contracts.resilience import (
    Admission,
    BreakerState,
    CircuitBreakerStrategy,
    RateLimitStrategy,
)
from forze.application.integrations.resilience.breaker import Circuit
from forze_redis.circuit_breaker import CIRCUIT_BREAKER
from forze_redis.rate_limit import RATE_LIMIT
from forze_redis.shared_circuit import SharedCircuit, Word

HOUR_US = 3_600_000_000
CAPACITIES = {"a": 5, "b": 2}
INTERVAL = timedelta(hours=4)
INTERVAL_US = INTERVAL // timedelta(microseconds=1)

STRATEGY = CircuitBreakerStrategy(
    failure_ratio=0.5,
    slow_call_ratio=0.75,
    slow_call_duration=1.0,
    min_throughput=4,
    sampling_window=1000.0,
    break_duration=500.0,
    max_break_duration=1500.0,
    half_open_max_calls=3,
    probe_lease=200.0,
    half_open_budget=700.0,
)
WIDTH_SECONDS = 100
NAME, CHANNEL = "breakers/pay", "breakers/changed"


def run(machine: type[RuleBasedStateMachine], dsn: str, examples: int) -> None:
    """Run a machine against a server."""
    with redis.Redis.from_url(dsn, decode_responses=True) as server:
        run_state_machine_as_test(
            type("Machine", (machine,), {"server": server}),
            settings=settings(
                max_examples=examples,
                stateful_step_count=25,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )


# -- rate limits ---------------------------------------------------------------


class BucketMachine(RuleBasedStateMachine):
    """Two buckets on the server, beside two fractions."""

    server: redis.Redis
    reached: ClassVar[set[bool]] = set()

    def __init__(self) -> None:
        super().__init__()
        self.server.flushall()
        self.kept = {name: Fraction(size) for name, size in CAPACITIES.items()}
        self.age = dict.fromkeys(CAPACITIES, 0)
        """Quarters of an interval since it was counted; below 0 after the clock was put back."""
        self.attempts = count()
        self.last: tuple[str, str, list[int], list[int]] | None = None

    def tokens(self, name: str) -> Fraction:
        """What is in a bucket now."""
        grown = self.kept[name] + Fraction(max(0, self.age[name]), 4)
        return min(Fraction(CAPACITIES[name]), grown)

    def call(self, attempt: str, names: str, costs: list[int]) -> list[list[int]]:
        limits = [each for name in names for each in (CAPACITIES[name], float(INTERVAL_US))]
        reply: Any = self.server.eval(
            RATE_LIMIT.source, len(names), *names, attempt, *limits, *costs
        )
        width = 1 + 3 * len(names)
        return [reply[at : at + width] for at in range(0, len(reply), width)]

    @rule(
        names=st.sampled_from(["a", "b"]),
        costs=st.lists(st.integers(-3, 6), min_size=1, max_size=3),
    )
    def take(self, names: str, costs: list[int]) -> None:
        """Requests for one limit, in their order."""
        self.served(names, costs, [[each] for each in costs])

    @rule(first=st.integers(-2, 6), second=st.integers(-2, 3))
    def take_both(self, first: int, second: int) -> None:
        """One request for two limits: of both or of none."""
        self.served("ab", [first, second], [[first, second]])

    def served(self, names: str, costs: list[int], requests: list[list[int]]) -> None:
        attempt = f"attempt{next(self.attempts)}"
        before, stepped = self.stored(), any(self.age[name] < 0 for name in names)
        replies = self.call(attempt, names, costs)
        tokens = {name: self.tokens(name) for name in names}
        granted, taken = [], False
        for request, (verdict, *rest) in zip(requests, replies, strict=True):
            wanted = dict(zip(names, request, strict=True))
            fits = all(cost <= 0 or tokens[name] >= cost for name, cost in wanted.items())
            assert bool(verdict) is fits, (wanted, tokens)
            self.reached.add(fits)
            granted.append(verdict)
            taken = taken or (fits and any(request))
            for place, (name, cost) in enumerate(wanted.items()):
                size = Fraction(CAPACITIES[name])
                tokens[name] = min(tokens[name] - cost, size) if fits else tokens[name]
                told(rest[3 * place : 3 * place + 3], tokens[name], size, cost, fits)
        for name in names:
            self.age[name] = max(0, self.age[name])
            if taken:
                self.kept[name], self.age[name] = tokens[name], 0
        if taken:
            self.last = attempt, names, costs, granted
        elif not stepped:
            assert self.stored() == before, "nothing is written without a grant"

    @rule()
    def repeat(self) -> None:
        """The same attempt is told the same, and takes nothing."""
        if self.last is None:
            return
        attempt, names, costs, granted = self.last
        if not any(self.server.hget(name, "by") == _by(attempt, granted) for name in names):
            return  # somebody came after it, or the bucket is full again
        before = [self.server.hget(name, "tokens") for name in CAPACITIES]
        assert [each[0] for each in self.call(attempt, names, costs)] == granted
        assert [self.server.hget(name, "tokens") for name in CAPACITIES] == before
        for name in names:
            self.age[name] = max(0, self.age[name])

    @rule(quarters=st.integers(1, 9))
    def wait(self, quarters: int) -> None:
        self.shift(-quarters * INTERVAL_US // 4)
        for name in CAPACITIES:
            self.age[name] += quarters
        self.drop_full()

    @rule()
    def clock_back(self) -> None:
        """The server's clock is put back by an hour: the permits stay as they are."""
        self.shift(INTERVAL_US // 4)
        for name in CAPACITIES:
            if self.server.exists(name):
                self.age[name] -= 1

    @rule(name=st.sampled_from(["a", "b"]))
    def evict(self, name: str) -> None:
        self.server.delete(name)
        self.kept[name], self.age[name] = Fraction(CAPACITIES[name]), 0

    @rule()
    def script_flush(self) -> None:
        self.server.script_flush()

    def shift(self, by: int) -> None:
        for name in CAPACITIES:
            at = self.server.hget(name, "at")
            if at is not None:
                self.server.hset(name, "at", int(at) + by)

    def drop_full(self) -> None:
        for name, size in CAPACITIES.items():
            if self.tokens(name) >= size:
                self.server.delete(name)  # as its TTL would
                self.kept[name], self.age[name] = Fraction(size), 0

    def stored(self) -> dict[str, Any]:
        return {name: self.server.hgetall(name) for name in CAPACITIES}

    @invariant()
    def a_full_bucket_is_not_kept(self) -> None:
        for name, size in CAPACITIES.items():
            full_ms = (size - self.kept[name]) * INTERVAL_US / 1000
            left = self.server.pttl(name)
            assert (left == -2) if self.kept[name] >= size else abs(full_ms - left) < 600_000


def told(numbers: list[int], tokens: Fraction, size: Fraction, cost: int, fits: bool) -> None:
    """What a bucket says of itself, beside what is in it."""
    remaining, wait, full = numbers
    assert remaining == int(tokens)
    if cost > size and not fits:
        assert wait == -1
    else:
        missing = 0 if fits else max(Fraction(0), cost - tokens)
        assert -HOUR_US / 10 < wait - missing * INTERVAL_US <= 1
    assert abs(full - (size - tokens) * INTERVAL_US) < HOUR_US / 10


def _by(attempt: str, granted: list[int]) -> str:
    return f"{attempt}:{''.join(map(str, granted))}"


def test_the_script_keeps_buckets(redis_dsn: str) -> None:
    run(BucketMachine, redis_dsn, 10)
    assert BucketMachine.reached == {True, False}


@pytest.fixture
def server(valkey_dsn: str) -> Any:
    """A server to ask."""
    with redis.Redis.from_url(valkey_dsn, decode_responses=True) as client:
        yield client


def take(server: redis.Redis, cost: int = 1, attempt: str | None = None) -> list[int]:
    """Ten permits a minute."""
    attempt = attempt or f"attempt{next(_attempts)}"
    reply: Any = server.eval(RATE_LIMIT.source, 1, "k", attempt, 10, 6e6, cost)
    granted: list[int] = reply
    return granted


_attempts = count()


def test_a_denial_writes_nothing(server: redis.Redis) -> None:
    assert [take(server)[0] for _ in range(10)] == [1] * 10
    before, lives = server.hgetall("k"), server.pexpiretime("k")
    assert take(server)[0] == 0
    assert server.hgetall("k") == before
    assert server.pexpiretime("k") == lives


def test_the_key_goes_when_the_bucket_is_full(server: redis.Redis) -> None:
    take(server, 3)
    assert 17_000 < server.pttl("k") <= 18_000
    take(server, -3)
    assert not server.exists("k")


def test_a_clock_put_back_freezes_nothing(server: redis.Redis) -> None:
    """By an hour: permits that were there are there, and those that were not come as before."""
    assert take(server, 9)[0] == 1
    server.hincrby("k", "at", HOUR_US)
    assert take(server)[0] == 1
    server.hincrby("k", "at", HOUR_US)
    granted, remaining, wait, _ = take(server)
    assert (granted, remaining) == (0, 0)
    assert wait <= 6_000_000
    server.hincrby("k", "at", -6_000_000)  # six seconds after the step, which was seen
    assert take(server)[0] == 1


def test_a_clock_put_forward_gives_one_burst(server: redis.Redis) -> None:
    assert take(server, 10)[0] == 1
    server.hincrby("k", "at", -HOUR_US)
    assert sum(take(server)[0] for _ in range(30)) == 10


def test_a_little_ahead_is_no_step(server: redis.Redis) -> None:
    """Clocks of servers differ: a stamp of another one, half a second ahead, gives nothing away."""
    assert take(server, 10)[0] == 1
    server.hincrby("k", "at", 500_000)
    before = server.hgetall("k")
    granted, _, wait, _ = take(server)
    assert granted == 0
    assert wait > 6_000_000
    assert server.hgetall("k") == before


def test_very_fast_and_very_slow_limits(server: redis.Redis) -> None:
    fast = float(timedelta(seconds=1) / timedelta(microseconds=1)) / 1e9
    assert server.eval(RATE_LIMIT.source, 1, "fast", "a", 10**9, fast, 10**9)[0] == 1
    assert server.eval(RATE_LIMIT.source, 1, "fast", "b", 10**9, fast, 10**9)[0] == 0
    slow = RateLimitStrategy(permits=1, per=timedelta(days=10_000)).interval_seconds * 1e6
    assert server.eval(RATE_LIMIT.source, 1, "slow", "a", 1, slow, 1)[0] == 1
    denied, _, wait, _ = server.eval(RATE_LIMIT.source, 1, "slow", "b", 1, slow, 1)
    assert denied == 0
    assert 0 <= slow - wait < 60_000_000


# -- circuit breakers ----------------------------------------------------------


class CircuitOnServer:
    """One circuit on a server, as the store asks it."""

    def __init__(self, server: redis.Redis, strategy: CircuitBreakerStrategy = STRATEGY) -> None:
        self.server = server
        self.circuit = SharedCircuit(("pay", None), NAME, CHANNEL, strategy)

    def call(self, event: str, permit: str = "", *numbers: int) -> tuple[bool, Word]:
        keys, args = self.circuit.call(event, permit, *numbers)
        reply: Any = self.server.eval(CIRCUIT_BREAKER.source, 2, *keys, *args)
        return Word.of_reply([x.encode() if isinstance(x, str) else x for x in reply])

    def fail(self, generation: int, calls: int = 1) -> Word:
        return self.call("record", "", generation, calls, calls, 0)[1]

    def shift(self, seconds: int) -> None:
        """Let time pass: what is stored becomes older. Whole buckets of the window."""
        microseconds, older = seconds * 1_000_000, dict[Any, Any]()
        fields: dict[Any, Any] = self.server.hgetall(NAME)
        for field, value in fields.items():
            if field == "until" and value:
                older[field] = str(int(value) - microseconds)
            elif field == "probes":
                leases = (each.split("=") for each in value.split())
                older[field] = " ".join(f"{p}={int(end) - microseconds}" for p, end in leases)
            elif field.isdigit():
                number, _, counts = value.partition(" ")
                moved = int(number) - seconds // WIDTH_SECONDS
                older[str(moved % 10)] = f"{moved} {counts}"
        if older:
            self.server.hset(NAME, mapping=older)
        if left := [each for each in fields if each.isdigit() and each not in older]:
            self.server.hdel(NAME, *left)


class BreakerMachine(RuleBasedStateMachine):
    """A circuit on the server, beside the machine of one process."""

    server: redis.Redis
    reached: ClassVar[set[BreakerState]] = set()

    def __init__(self) -> None:
        super().__init__()
        self.server.flushall()
        self.there = CircuitOnServer(self.server)
        self.passed = 0
        self.here = Circuit(STRATEGY, self.now())
        self.permits = count(1)
        self.held: list[tuple[Admission, Word, str]] = []
        self.generations: dict[int, int] = {0: 0}

    def now(self) -> float:
        """The server's time, and what was made to pass."""
        seconds, microseconds = self.server.time()
        return float(seconds + self.passed) + float(microseconds) / 1_000_000

    @rule()
    def admit(self) -> None:
        permit = f"p{next(self.permits)}"
        here = self.here.admit(self.now(), permit)
        allowed, there = self.there.call("admit", permit)
        self.same(here, allowed, there)
        if allowed:
            self.held.append((here, there, permit))

    @rule(data=st.data())
    def admit_again(self, data: st.DataObject) -> None:
        """The same permit again gets the same answer, as long as its place is not given up."""
        if not self.held:
            return
        _, _, permit = data.draw(st.sampled_from(self.held))
        here = self.here.admit(self.now(), permit)
        allowed, there = self.there.call("admit", permit)
        self.same(here, allowed, there)

    @rule(data=st.data(), ok=st.sampled_from([True, False, False, None]), slow=st.booleans())
    def record(self, data: st.DataObject, ok: bool | None, slow: bool) -> None:
        if not self.held:
            return
        here, there, permit = data.draw(st.sampled_from(self.held))
        probe = permit if there.state is BreakerState.HALF_OPEN else ""
        if ok is None and not probe:
            return
        counts = (0, 0, 0) if ok is None else (1, int(not ok), int(slow))
        self.here.record(self.now(), ok, slow, here.generation, here.permit)
        _, now_there = self.there.call("record", probe, there.generation, *counts)
        self.compare(now_there)

    @rule(widths=st.sampled_from([1, 2, 5, 7, 10, 15, 30]))
    def wait(self, widths: int) -> None:
        self.there.shift(widths * WIDTH_SECONDS)
        self.passed += widths * WIDTH_SECONDS

    @rule(state=st.sampled_from(["forced_open", "disabled", "closed"]))
    def force(self, state: str) -> None:
        by_hand: Any = BreakerState(state)
        self.here.force(by_hand, self.now())
        self.compare(self.there.call("force", state)[1])

    @rule()
    def forget(self) -> None:
        """FLUSHALL, or eviction: closed, as nothing ever was."""
        self.server.delete(NAME)
        self.here = Circuit(STRATEGY, self.now())
        self.held.clear()
        self.generations = {0: 0}

    @rule()
    def script_flush(self) -> None:
        self.server.script_flush()

    def same(self, here: Admission, allowed: bool, there: Word) -> None:
        assert (here.allowed, here.state) == (allowed, there.state)
        self.compare(there)
        if here.retry_after is not None:
            assert abs(here.retry_after.total_seconds() - there.wait) < 10

    def compare(self, there: Word) -> None:
        """The same state; the same generation under another name."""
        assert self.here.state is there.state
        self.reached.add(there.state)
        assert self.generations.setdefault(self.here.generation, there.generation) == (
            there.generation
        )
        assert sorted(self.generations.values()) == [
            self.generations[each] for each in sorted(self.generations)
        ]

    @invariant()
    def a_look_changes_nothing(self) -> None:
        before = self.server.hgetall(NAME)
        self.there.call("look")
        assert self.server.hgetall(NAME) == before
        if before:
            lasting = before.get("state") in ("forced_open", "disabled")
            assert (self.server.pttl(NAME) == -1) is lasting


def test_the_script_is_the_machine_of_one_process(redis_dsn: str) -> None:
    run(BreakerMachine, redis_dsn, 15)
    assert len(BreakerMachine.reached) > 1


@pytest.fixture
def circuit(server: redis.Redis) -> CircuitOnServer:
    """A circuit that is closed."""
    return CircuitOnServer(server)


def half_open(circuit: CircuitOnServer, probes: int) -> Word:
    """A circuit with so many probes out."""
    circuit.fail(0, 4)
    circuit.shift(500)
    word = circuit.call("look")[1]
    for probe in range(probes):
        allowed, word = circuit.call("admit", f"p{probe}")
        assert allowed
    assert word.state is BreakerState.HALF_OPEN
    return word


def test_a_refusal_writes_nothing(circuit: CircuitOnServer) -> None:
    circuit.fail(0, 4)
    for _ in range(2):
        before, lives = circuit.server.hgetall(NAME), circuit.server.pexpiretime(NAME)
        allowed, word = circuit.call("admit", "q")
        assert not allowed
        assert circuit.server.hgetall(NAME) == before
        assert circuit.server.pexpiretime(NAME) == lives
        if word.state is BreakerState.OPEN:
            circuit.shift(500)
            for probe in range(3):
                circuit.call("admit", f"p{probe}")


def test_outcomes_of_an_older_generation_are_dropped(circuit: CircuitOnServer) -> None:
    word = half_open(circuit, 3)
    for probe in range(3):
        circuit.call("record", f"p{probe}", word.generation, 1, 0, 0)
    assert circuit.call("look")[1].state is BreakerState.CLOSED
    for generation in (0, word.generation):
        told = circuit.fail(generation, 10)
        assert (told.state, told.calls) == (BreakerState.CLOSED, 0)


def test_where_no_transition_is_known_every_outcome_counts(circuit: CircuitOnServer) -> None:
    """Whoever knows of one tells a server that has forgotten it."""
    assert circuit.fail(1_700_000_000_000_000, 4).state is BreakerState.OPEN


def test_it_closes_after_the_last_of_n(circuit: CircuitOnServer) -> None:
    word = half_open(circuit, 3)
    states = [
        circuit.call("record", f"p{probe}", word.generation, 1, 0, 0)[1].state for probe in range(3)
    ]
    assert states == [BreakerState.HALF_OPEN, BreakerState.HALF_OPEN, BreakerState.CLOSED]


def test_an_outcome_told_twice_counts_once(circuit: CircuitOnServer) -> None:
    word = half_open(circuit, 3)
    for _ in range(5):
        told = circuit.call("record", "p0", word.generation, 1, 0, 0)[1]
        assert (told.state, told.calls) == (BreakerState.HALF_OPEN, 1)


def test_a_lost_probe_returns_to_the_pool(circuit: CircuitOnServer) -> None:
    half_open(circuit, 3)
    assert not circuit.call("admit", "q")[0]
    circuit.shift(200)
    assert circuit.call("admit", "q")[0]


def test_generations_rise_through_a_flush(circuit: CircuitOnServer) -> None:
    first = circuit.fail(0, 4)
    circuit.server.flushall()
    assert circuit.fail(0, 4).generation > first.generation


def test_a_clock_put_back_ends_no_break_later(circuit: CircuitOnServer) -> None:
    circuit.fail(0, 4)
    circuit.shift(-3600)
    allowed, word = circuit.call("admit", "q")
    assert not allowed
    assert 490 < word.wait <= 500
    circuit.shift(500)
    assert circuit.call("admit", "q")[0], "the step was written down"


def test_a_clock_put_back_keeps_no_probe_longer(circuit: CircuitOnServer) -> None:
    half_open(circuit, 3)
    circuit.shift(-3600)
    assert circuit.call("admit", "q")[1].wait <= 200
    for _ in range(8):
        circuit.shift(500)
        circuit.call("admit", "lost")
    circuit.shift(5000)
    assert circuit.call("admit", "q")[0]


def test_a_break_of_ones_own_outlasts_the_next_outage(circuit: CircuitOnServer) -> None:
    alone = circuit.circuit
    alone.keep_open(5.0, now=100.0)
    parted = alone.part(now=102.0)
    assert parted.state is BreakerState.OPEN
    assert parted.retry_after is not None
    assert 3.0 <= parted.retry_after.total_seconds() < 3.1


def test_a_window_has_no_edge(circuit: CircuitOnServer) -> None:
    """Failures on both sides of a bucket's end, and of the window's start, count together."""
    circuit.fail(0, 2)
    circuit.shift(WIDTH_SECONDS)
    assert circuit.fail(0, 1).state is BreakerState.CLOSED
    circuit.shift(8 * WIDTH_SECONDS)
    assert circuit.fail(0, 1).state is BreakerState.OPEN


def test_what_is_older_than_the_window_is_forgotten(circuit: CircuitOnServer) -> None:
    circuit.fail(0, 3)
    circuit.shift(10 * WIDTH_SECONDS)
    told = circuit.fail(0, 1)
    assert (told.state, told.calls) == (BreakerState.CLOSED, 1)
