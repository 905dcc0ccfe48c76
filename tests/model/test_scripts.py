"""The scripts do on a real server what the transition functions say: nothing more, nothing less."""

from __future__ import annotations

import re
import socket
import time
from contextlib import closing
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from forze.application.integrations.document import protocol
from forze.application.integrations.document.codec import seal
from forze.application.integrations.document.protocol import (
    Intent,
    Lease,
    Pointer,
    Read,
    Refresh,
    Value,
)
from forze_redis import cache as scripts

LONG_MS = 60_000
KEY = "app:things/cache/pointer/k"
BODIES = "app:things/cache/body/k/"
PLAIN = "app:things/cache/kv/k"
UNCHECKED = "00000000"
"""The generation that the scripts for large bodies take on trust."""

TAGS = [f"{UNCHECKED}schema01", f"{UNCHECKED}schema02", "othergenschema01"]

tags = st.sampled_from([*TAGS, TAGS[0], TAGS[0]])
tokens = st.sampled_from(["t1", "t2"])
versions = st.sampled_from(["1", "2", "9", "10", "010", "v1", "a%2Fb", "a:1:b"])
windows = st.sampled_from([0, LONG_MS // 2, 2 * LONG_MS])
writes = st.sampled_from(["w1", "w2"])

ANSWERS = {1: Read.LEASED, 2: Read.HELD, 3: Read.INTENT, 5: Read.ABSENT}


def body_of(version: str) -> bytes:
    """What is stored under ``version``: in an envelope, so that it may be refreshed early."""
    return seal(b"body of " + version.encode(), 5)


def parse(raw: bytes | None, now: int) -> Pointer:
    """The pointer a stored string stands for; deadlines and lease ends are not compared, but a
    refresh that has lapsed by ``now`` is none."""
    if raw is None:
        return None
    text = raw.decode()
    if text[0] == "V":
        return Value(text[1:17], text[17:])
    if text[0] == "R":
        token, until, version = text[17:].split(":", 2)
        return Value(text[1:17], version, Refresh(token, 1) if int(until) > now else None)
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
            assert answer == body_of(self.expected.version)
        else:
            assert ANSWERS[answer] is found

    @rule(tag=tags, token=tokens, window=windows)
    def read_early(self, tag: str, token: str, window: int) -> None:
        answer = self.call(scripts.READ, [KEY], tag, token, LONG_MS, 0, window, 1)
        self.expected, found = protocol.read(self.expected, tag, token, 1, 0)
        if found is not Read.HIT:
            assert ANSWERS[answer] is found
            return
        assert isinstance(self.expected, Value)
        if self.expected.refresh is None:
            answer, remaining = answer
            assert 0 <= remaining - self.server.pttl(KEY) < LONG_MS // 60
        assert answer == body_of(self.expected.version)

    @rule(tag=tags)
    def read_large(self, tag: str) -> None:
        answer = self.call(scripts.READ_LARGE, [KEY], tag)
        current, found = protocol.read(self.expected, tag, None, 1, 0)
        if found is Read.HIT and tag.startswith(UNCHECKED):
            assert isinstance(current, Value)
            assert answer == body_of(current.version)
        else:
            assert answer is None

    @rule(tag=tags)
    def peek(self, tag: str) -> None:
        answer = self.call(scripts.READ, [KEY], tag, "", LONG_MS, 0)
        self.expected, found = protocol.read(self.expected, tag, None, 1, 0)
        assert isinstance(answer, bytes) if found is Read.HIT else ANSWERS[answer] is found

    @rule(tag=tags, token=tokens, version=versions, window=windows, large=st.booleans())
    def fill(self, tag: str, token: str, version: str, window: int, large: bool) -> None:
        script = scripts.FILL_LARGE if large else scripts.FILL
        body = body_of(version)
        answer = self.call(script, [KEY], tag, token, version, body, LONG_MS, window)
        before, accepted = self.expected, False
        if not large or tag.startswith(UNCHECKED):
            self.expected, accepted = protocol.fill(before, tag, token, version, 0)
        assert answer == (int(accepted) if large else [int(accepted)])
        if accepted:
            life = self.server.pttl(BODIES + version)
            assert 0 <= min(window or LONG_MS, LONG_MS) - life < LONG_MS // 60
            self.nothing_left_of(before, but=version)

    @rule(tag=tags, token=tokens)
    def elect(self, tag: str, token: str) -> None:
        won = self.call(scripts.ELECT, [KEY], tag, token, LONG_MS)
        self.expected, elected = protocol.elect(self.expected, tag, token, 1, 0)
        assert bool(won) is elected

    @rule(tag=tags, token=tokens)
    def elect_and_lapse(self, tag: str, token: str) -> None:
        won = self.call(scripts.ELECT, [KEY], tag, token, 1)
        time.sleep(0.003)
        self.expected, elected = protocol.elect(self.expected, tag, token, 0, 0)
        self.expected = protocol.prune(self.expected, 0)
        assert bool(won) is elected

    @rule(token=tokens, version=versions, lapsed=st.booleans())
    def refresh(self, token: str, version: str, lapsed: bool) -> None:
        """The short way to a state that chance seldom finds."""
        self.put(TAGS[0], version)
        if lapsed:
            self.elect_and_lapse(TAGS[0], token)
        else:
            self.elect(TAGS[0], token)

    @rule(tag=tags, token=tokens)
    def renew(self, tag: str, token: str) -> None:
        held = self.call(scripts.LEASE, [KEY], tag, token, 2 * LONG_MS)
        before, self.expected = self.expected, protocol.renew(self.expected, tag, token, 2, 0)
        prolonged = before != self.expected
        assert bool(held) is prolonged
        if isinstance(self.expected, Lease) and prolonged:
            assert self.server.pttl(KEY) > LONG_MS
            self.expected = replace(self.expected, until=1)
        elif isinstance(self.expected, Value) and prolonged:
            until = int(str(self.server.get(KEY)).split(":")[1])
            assert until - self.now() > LONG_MS
            assert self.server.pttl(KEY) <= LONG_MS, "a refresh gives the value no more time"
            self.expected = replace(self.expected, refresh=Refresh(token, 1))

    @rule(tag=tags, token=tokens)
    def give_back(self, tag: str, token: str) -> None:
        self.call(scripts.LEASE, [KEY], tag, token, 0)
        self.expected = protocol.give_back(self.expected, tag, token, 0)

    @rule(write_id=writes)
    def intend(self, write_id: str) -> None:
        self.call(scripts.INTEND, [KEY], write_id, LONG_MS)
        self.nothing_left_of(self.expected)
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
        self.nothing_left_of(self.expected)
        self.expected = protocol.done(self.expected, write_id, 0)

    @rule(tag=tags, version=versions)
    def put(self, tag: str, version: str) -> None:
        (stored,) = self.call(scripts.PUT, [KEY], tag, LONG_MS, version, body_of(version))
        before = self.expected
        self.expected, accepted = protocol.put(before, tag, version, 0)
        assert bool(stored) is accepted
        if accepted:
            self.nothing_left_of(before, but=version)

    @rule()
    def set_plain(self) -> None:
        self.call(scripts.SET, [KEY, PLAIN], LONG_MS, "plain")
        self.nothing_left_of(self.expected)
        self.expected = protocol.done(self.expected, "nobody", 0)

    @rule(hard=st.sampled_from(["0", "1"]))
    def remove(self, hard: str) -> None:
        there = isinstance(self.expected, Value) or bool(self.server.exists(PLAIN))
        (removed,) = self.call(scripts.REMOVE, [KEY, PLAIN], hard)
        if hard == "1":
            self.nothing_left_of(self.expected)
        self.expected = protocol.done(self.expected, "nobody", 0)
        assert bool(removed) is there

    @rule(generation=st.sampled_from([UNCHECKED, "othergen"]))
    def get(self, generation: str) -> None:
        (value,) = self.call(scripts.GET, [KEY, PLAIN], generation, 0)
        current = self.expected
        if isinstance(current, Value) and current.tag.startswith(generation):
            assert value == body_of(current.version)
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
        actual = parse(raw, self.now())
        if isinstance(actual, Intent) and isinstance(self.expected, Intent):
            assert {each for each, _ in self.expected.ids} <= {each for each, _ in actual.ids}
        else:
            assert actual == self.expected
        assert raw is None or 0 < self.server.pttl(KEY) <= 2 * LONG_MS, "every pointer expires"

    def nothing_left_of(self, replaced: Pointer, but: str = "") -> None:
        """The body of a value that was replaced (by ``but``) is freed."""
        if isinstance(replaced, Value) and replaced.version != but:
            assert not self.server.exists(BODIES + replaced.version)

    def now(self) -> int:
        seconds, microseconds = self.server.time()
        return seconds * 1000 + microseconds // 1000

    @invariant()
    def one_body(self) -> None:
        """No body outlives what named it, but for those left to expire on request."""
        if isinstance(self.expected, Value):
            end = self.server.pexpiretime(BODIES + self.expected.version)
            assert end <= self.server.pexpiretime(KEY) + 2, "the cap holds"
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
        server.eval(scripts.FILL.source, 1, KEY, TAGS[0], "t1", "1", "body", LONG_MS, 0)
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
        assert call(server, scripts.FILL, TAGS[2], "t1", "1", "body", LONG_MS, 0) == [0]
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


class Follower:
    """A connection that is told of every write to a pointer."""

    def __init__(self, dsn: str) -> None:
        place = urlsplit(dsn)
        self._socket = socket.create_connection((place.hostname, place.port), timeout=5)
        self._ask(b"HELLO 3\r\n", b"modules\r\n*0\r\n")
        self._ask(b"CLIENT TRACKING ON BCAST PREFIX app:things/cache/pointer/\r\n", b"+OK\r\n")

    def told(self) -> bool:
        """Whether it was told of any since it was last asked."""
        return b"invalidate" in self._ask(b"PING\r\n", b"+PONG\r\n")

    def close(self) -> None:
        self._socket.close()

    def _ask(self, command: bytes, end: bytes) -> bytes:
        self._socket.sendall(command)
        reply = b""
        while not reply.endswith(end):
            reply += self._socket.recv(65536)
        return reply


def filled(
    server: redis.Redis, version: str, *, life_ms: int = LONG_MS, window_ms: int = 0
) -> None:
    """Lease the one key and fill it."""
    assert call(server, scripts.READ, TAGS[0], "t0", LONG_MS, 0) == 1
    args = ("t0", version, body_of(version), life_ms, window_ms)
    assert call(server, scripts.FILL, TAGS[0], *args) == [1]


def test_an_election_takes_and_gives_no_time(redis_dsn: str) -> None:
    """Being refreshed, or no longer, a value ends when it would have ended."""
    with redis.Redis.from_url(redis_dsn) as server:
        filled(server, "1", life_ms=LONG_MS // 2)
        for script, milliseconds in (
            (scripts.ELECT, LONG_MS),
            (scripts.LEASE, LONG_MS),
            (scripts.LEASE, 0),
        ):
            assert call(server, script, TAGS[0], "t1", milliseconds) == 1
            assert LONG_MS // 3 < server.pttl(KEY) <= LONG_MS // 2
        assert call(server, scripts.LEASE, TAGS[0], "t1", LONG_MS) == 0, "given back"


@pytest.mark.parametrize("script", [scripts.FILL, scripts.FILL_LARGE], ids=lambda each: each.name)
@pytest.mark.parametrize("window_ms", [9_000, 59_999, 60_000, 100_000])
def test_the_window_is_a_number_below_the_life(redis_dsn: str, script: Any, window_ms: int) -> None:
    """P2: it ends the body, the life ends the pointer, and no body outlives its pointer."""
    with redis.Redis.from_url(redis_dsn) as server:
        assert call(server, scripts.READ, TAGS[0], "t1", LONG_MS, 0) == 1
        assert call(server, script, TAGS[0], "t1", "1", "body", 60_000, window_ms) in (1, [1])
        assert 59_000 < server.pttl(KEY) <= 60_000
        end = min(window_ms, 60_000)
        assert end - 1_000 < server.pttl(BODIES + "1") <= end


FILL_ANEW = (TAGS[0], "t1", "2", "body", LONG_MS, 0)


@pytest.mark.parametrize(
    ("script", "keys", "args"),
    [
        (scripts.INTEND, [KEY], ("w1", LONG_MS)),
        (scripts.DONE, [KEY], ("w1",)),
        (scripts.SET, [KEY, PLAIN], (LONG_MS, "plain")),
        (scripts.REMOVE, [KEY, PLAIN], ("1",)),
        (scripts.PUT, [KEY], (TAGS[0], LONG_MS, "2", "body")),
        (scripts.FILL, [KEY], FILL_ANEW),
        (scripts.FILL_LARGE, [KEY], FILL_ANEW),
    ],
    ids=lambda each: getattr(each, "name", ""),
)
def test_what_replaces_a_value_under_refresh_frees_its_body(
    redis_dsn: str, script: Any, keys: list[str], args: tuple[Any, ...]
) -> None:
    """P2: a refreshed value has a body like any other."""
    with redis.Redis.from_url(redis_dsn) as server:
        filled(server, "1")
        assert call(server, scripts.ELECT, TAGS[0], "t1", LONG_MS) == 1
        server.eval(script.source, len(keys), *keys, *args)
        assert not server.exists(BODIES + "1")


def test_a_lapsed_refresh_is_held_by_nobody(redis_dsn: str) -> None:
    """P2: it can be neither renewed nor filled, and hides from no one that it is over."""
    with redis.Redis.from_url(redis_dsn) as server:
        filled(server, "1")
        assert call(server, scripts.ELECT, TAGS[0], "t1", 1) == 1
        time.sleep(0.003)
        assert call(server, scripts.LEASE, TAGS[0], "t1", LONG_MS) == 0
        assert call(server, scripts.FILL, *FILL_ANEW) == [0]
        assert call(server, scripts.FILL_LARGE, *FILL_ANEW) == 0
        answer = call(server, scripts.READ, TAGS[0], "t2", LONG_MS, 0, 0, 1)
        assert answer[0] == body_of("1")
        assert call(server, scripts.ELECT, TAGS[0], "t2", LONG_MS) == 1


def test_a_hit_prolongs_the_body_alone_and_seldom(redis_dsn: str) -> None:
    """At most once per quarter window, up to the cap, and the tracked key is not written."""
    window = LONG_MS // 4
    asked = (TAGS[0], "t1", LONG_MS, 0, window, 0)
    with redis.Redis.from_url(redis_dsn) as server:
        filled(server, "1", window_ms=window)
        place = BODIES + "1"
        server.pexpire(place, window * 4 // 5)
        assert call(server, scripts.READ, *asked) == body_of("1")
        assert server.pttl(place) <= window * 4 // 5, "above three quarters nothing is done"
        server.pexpire(place, window // 2)
        assert call(server, scripts.READ, *asked) == body_of("1")
        assert window * 9 // 10 < server.pttl(place) <= window
        server.pexpire(place, window // 2)
        server.pexpire(KEY, window * 3 // 5)
        assert call(server, scripts.READ, *asked) == body_of("1")
        assert window // 2 < server.pttl(place) <= window * 3 // 5
        server.pexpire(KEY, window // 4)
        assert call(server, scripts.READ, *asked) == body_of("1")
        assert server.pttl(place) > window // 3, "never shortened"


def test_sliding_tells_no_tracking_client(redis_dsn: str) -> None:
    """A hit wakes no tier that follows the pointers, however much it prolongs."""
    with redis.Redis.from_url(redis_dsn) as server, closing(Follower(redis_dsn)) as follower:
        filled(server, "1", window_ms=LONG_MS)
        assert follower.told()
        server.pexpire(BODIES + "1", LONG_MS // 2)
        asked = (TAGS[0], "t1", LONG_MS, 0, LONG_MS, 1)
        assert call(server, scripts.READ, *asked)[0] == body_of("1")
        assert server.pttl(BODIES + "1") > LONG_MS * 3 // 4
        assert not follower.told()
        assert call(server, scripts.ELECT, TAGS[0], "t1", LONG_MS) == 1
        assert follower.told()


def test_a_hit_too_large_to_answer_is_a_hit(redis_dsn: str) -> None:
    """It prolongs the body that is then fetched apart."""
    with redis.Redis.from_url(redis_dsn) as server:
        filled(server, "1", window_ms=LONG_MS)
        server.pexpire(BODIES + "1", LONG_MS // 2)
        assert call(server, scripts.READ, TAGS[0], "t1", LONG_MS, 3, LONG_MS, 1) == 4
        assert server.pttl(BODIES + "1") > LONG_MS * 3 // 4


def test_a_value_whose_window_has_passed_is_absent(redis_dsn: str) -> None:
    """Its pointer, which lives on to the cap, hides nothing and forbids nothing."""
    with redis.Redis.from_url(redis_dsn) as server:
        filled(server, "7", window_ms=LONG_MS // 2)
        server.delete(BODIES + "7")
        assert server.eval(scripts.GET.source, 2, KEY, PLAIN, UNCHECKED, 0) == [None]
        assert server.eval(scripts.REMOVE.source, 2, KEY, PLAIN, 1) == [0]
        filled(server, "7", window_ms=LONG_MS // 2)
        server.delete(BODIES + "7")
        assert call(server, scripts.PUT, TAGS[0], LONG_MS, "6", "body") == [1]


def test_only_what_may_be_refreshed_is_answered_with_its_age(redis_dsn: str) -> None:
    """An envelope, asked for, and nobody refreshing it; many at once as one."""
    early = (TAGS[0], "t1", LONG_MS, 0, 0, 1)
    with redis.Redis.from_url(redis_dsn) as server:
        filled(server, "1")
        assert call(server, scripts.READ, *early)[0] == body_of("1")
        assert call(server, scripts.READ, TAGS[0], "t1", LONG_MS, 0, 0, 0) == body_of("1")
        both = server.eval(scripts.READ.source, 2, KEY, KEY + "2", *early)
        assert both[0][0] == body_of("1")
        assert both[1] == 1
        server.set(BODIES + "1", b"bare", keepttl=True)
        assert call(server, scripts.READ, *early) == b"bare"
