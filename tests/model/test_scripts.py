"""The scripts do on a real server what the transition functions say: nothing more, nothing less."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from forze.application.integrations.document import protocol
from forze.application.integrations.document.protocol import Intent, Lease, Pointer, Read, Value
from forze_redis import cache as scripts

LONG_MS = 60_000
KEY = "app:things/cache/pointer/k"
BODIES = "app:things/cache/body/k/"
PLAIN = "app:things/cache/kv/k"
TAGS = ["generatnschema01", "generatnschema02", "othergenschema01"]

tags = st.sampled_from(TAGS)
tokens = st.sampled_from(["t1", "t2"])
versions = st.sampled_from(["1", "2", "9", "10", "010", "v1", "a%2Fb"])
writes = st.sampled_from(["w1", "w2"])

ANSWERS = {1: Read.LEASED, 2: Read.HELD, 3: Read.INTENT, 5: Read.ABSENT}


def parse(raw: bytes | None) -> Pointer:
    """The pointer a stored string stands for; deadlines and lease ends are not compared."""
    if raw is None:
        return None
    text = raw.decode()
    if text[0] == "V":
        return Value(text[1:17], text[17:])
    if text[0] == "L":
        return Lease(text[1:17], text[17:], 1)
    assert text[0] == "I"
    return Intent(tuple((write_id, 1) for write_id, _ in re.findall(r"([^:;]+):(\d+);", text)))


class PointerMachine(RuleBasedStateMachine):
    """One key on the server beside the pure functions, after every step in the same state."""

    server: redis.Redis

    def __init__(self) -> None:
        super().__init__()
        self.server.flushall()
        self.expected: Pointer = None
        self.lapsed: set[str] = set()

    def call(self, script: Any, keys: list[str], *args: object) -> Any:
        return self.server.eval(script.source, len(keys), *keys, *args)  # type: ignore[arg-type]

    @rule(tag=tags, token=tokens)
    def read(self, tag: str, token: str) -> None:
        answer = self.call(scripts.READ, [KEY], tag, token, LONG_MS, 0)
        self.expected, found = protocol.read(self.expected, tag, token, 1, 0)
        if found is Read.HIT:
            assert isinstance(self.expected, Value)
            assert answer == f"body of {self.expected.version}".encode()
        else:
            assert ANSWERS[answer] is found

    @rule(tag=tags)
    def peek(self, tag: str) -> None:
        answer = self.call(scripts.READ, [KEY], tag, "", LONG_MS, 0)
        self.expected, found = protocol.read(self.expected, tag, None, 1, 0)
        assert isinstance(answer, bytes) if found is Read.HIT else ANSWERS[answer] is found

    @rule(tag=tags, token=tokens, version=versions)
    def fill(self, tag: str, token: str, version: str) -> None:
        (stored,) = self.call(
            scripts.FILL, [KEY], tag, token, version, f"body of {version}", LONG_MS
        )
        self.expected, accepted = protocol.fill(self.expected, tag, token, version, 0)
        assert bool(stored) is accepted

    @rule(tag=tags, token=tokens)
    def renew(self, tag: str, token: str) -> None:
        held = self.call(scripts.LEASE, [KEY], tag, token, 2 * LONG_MS)
        before, self.expected = self.expected, protocol.renew(self.expected, tag, token, 2, 0)
        prolonged = before != self.expected
        assert bool(held) is prolonged
        if prolonged:
            assert self.server.pttl(KEY) > LONG_MS
            assert isinstance(self.expected, Lease)
            self.expected = replace(self.expected, until=1)

    @rule(tag=tags, token=tokens)
    def give_back(self, tag: str, token: str) -> None:
        self.call(scripts.LEASE, [KEY], tag, token, 0)
        self.expected = protocol.give_back(self.expected, tag, token, 0)

    @rule(write_id=writes)
    def intend(self, write_id: str) -> None:
        self.call(scripts.INTEND, [KEY], write_id, LONG_MS)
        self.expected = protocol.intend(self.expected, write_id, 1, 0)

    @rule(write_id=writes)
    def intend_and_lapse(self, write_id: str) -> None:
        self.call(scripts.INTEND, [KEY], write_id, 1)
        time.sleep(0.003)
        self.expected = protocol.intend(self.expected, write_id, 0, 0)
        self.expected = protocol.prune(self.expected, 0)

    @rule(write_id=writes)
    def done(self, write_id: str) -> None:
        self.call(scripts.DONE, [KEY], write_id)
        self.expected = protocol.done(self.expected, write_id, 0)

    @rule(tag=tags, version=versions)
    def put(self, tag: str, version: str) -> None:
        (stored,) = self.call(scripts.PUT, [KEY], tag, LONG_MS, version, f"body of {version}")
        self.expected, accepted = protocol.put(self.expected, tag, version, 0)
        assert bool(stored) is accepted

    @rule()
    def set_plain(self) -> None:
        self.call(scripts.SET, [KEY, PLAIN], LONG_MS, "plain")
        self.expected = protocol.done(self.expected, "nobody", 0)

    @rule(hard=st.sampled_from(["0", "1"]))
    def remove(self, hard: str) -> None:
        there = isinstance(self.expected, Value) or bool(self.server.exists(PLAIN))
        (removed,) = self.call(scripts.REMOVE, [KEY, PLAIN], hard)
        self.expected = protocol.done(self.expected, "nobody", 0)
        assert bool(removed) is there

    @rule(generation=st.sampled_from(["generatn", "othergen"]))
    def get(self, generation: str) -> None:
        (value,) = self.call(scripts.GET, [KEY, PLAIN], generation, 0)
        current = self.expected
        if isinstance(current, Value) and current.tag.startswith(generation):
            assert value == f"body of {current.version}".encode()
        else:
            assert value == self.server.get(PLAIN)

    @rule()
    def evict(self) -> None:
        self.server.delete(KEY)
        self.expected = None

    @rule()
    def evict_body(self) -> None:
        """A value without its body is worth nothing: the next read takes the lease."""
        if isinstance(self.expected, Value):
            self.server.delete(BODIES + self.expected.version)
            answer = self.call(scripts.READ, [KEY], self.expected.tag, "t1", LONG_MS, 0)
            assert ANSWERS[answer] is Read.LEASED
            self.expected = Lease(self.expected.tag, "t1", 1)

    @rule()
    def script_flush(self) -> None:
        self.server.script_flush()

    @invariant()
    def same_state(self) -> None:
        raw = self.server.get(KEY)
        assert raw is None or isinstance(raw, bytes)
        actual = parse(raw)
        if isinstance(actual, Intent) and isinstance(self.expected, Intent):
            assert {each for each, _ in self.expected.ids} <= {each for each, _ in actual.ids}
        else:
            assert actual == self.expected
        assert raw is None or 0 < self.server.pttl(KEY) <= 2 * LONG_MS, "every pointer expires"

    @invariant()
    def one_body(self) -> None:
        """No body outlives what named it, but for those left to expire on request."""
        for name in self.server.keys(BODIES + "*"):
            assert 0 < self.server.pttl(name) <= LONG_MS


def test_scripts_carry_out_the_transitions(redis_dsn: str) -> None:
    """P2: every script, in any order, with eviction, lapse and SCRIPT FLUSH in between."""
    server = redis.Redis.from_url(redis_dsn)
    machine = type("Machine", (PointerMachine,), {"server": server})
    try:
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=60,
                stateful_step_count=40,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        server.close()


def test_a_full_server_refuses_the_hit(redis_dsn: str) -> None:
    """P6: who cannot be told of an invalidation must not answer a hit."""
    server = redis.Redis.from_url(redis_dsn)
    try:
        server.eval(scripts.READ.source, 1, KEY, TAGS[0], "t1", LONG_MS, 0)
        server.eval(scripts.FILL.source, 1, KEY, TAGS[0], "t1", "1", "body", LONG_MS)
        assert server.eval(scripts.READ.source, 1, KEY, TAGS[0], "t1", LONG_MS, 0) == b"body"
        server.config_set("maxmemory", "1")
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            server.eval(scripts.READ.source, 1, KEY, TAGS[0], "t1", LONG_MS, 0)
    finally:
        server.config_set("maxmemory", "0")
        server.close()


def call(server: redis.Redis, script: Any, *args: object) -> Any:
    """Run ``script`` on the one key."""
    return server.eval(script.source, 1, KEY, *args)  # type: ignore[arg-type]


def test_a_fill_under_another_generation_is_refused(redis_dsn: str) -> None:
    """P3: a lease of the server that was gives no right on the server that is."""
    with redis.Redis.from_url(redis_dsn) as server:
        call(server, scripts.READ, TAGS[0], "t1", LONG_MS, 0)
        lease = server.get(KEY)
        assert call(server, scripts.FILL, TAGS[2], "t1", "1", "body", LONG_MS) == [0]
        assert server.get(KEY) == lease


def test_an_id_announced_twice_is_one_writer(redis_dsn: str) -> None:
    """P2: a renewal replaces its own deadline, and one done ends it."""
    with redis.Redis.from_url(redis_dsn) as server:
        for write_id in ("w1", "w2", "w1"):
            call(server, scripts.INTEND, write_id, LONG_MS)
        assert server.get(KEY).count(b"w1:") == 1
        call(server, scripts.DONE, "w1")
        call(server, scripts.DONE, "w2")
        assert server.get(KEY) is None


def test_nothing_is_stored_over_a_write_in_flight(redis_dsn: str) -> None:
    """P2: set_versioned leaves an intent in place."""
    with redis.Redis.from_url(redis_dsn) as server:
        call(server, scripts.INTEND, "w1", LONG_MS)
        assert call(server, scripts.PUT, TAGS[0], LONG_MS, "1", "body") == [0]
        assert call(server, scripts.READ, TAGS[0], "t1", LONG_MS, 0) == 3
