"""The idempotency scripts do on a real server what the transition functions say."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from forze.application.contracts.idempotency import IdempotencySnapshot
from forze.application.contracts.tenancy import bind_principal, bind_tenant
from forze.application.integrations.idempotency import record as transitions
from forze.application.integrations.idempotency.names import record_parts
from forze.application.integrations.idempotency.record import (
    Answer,
    Busy,
    Completed,
    Granted,
    Mismatched,
    Record,
    State,
)
from forze_memory.addresses import ResourceAddresses
from forze_memory.config import MemoryResourceConfig
from forze_redis import RedisClient, RedisIdempotencyConfig
from forze_redis import idempotency as scripts
from forze_redis.keys import ResourceKeys

KEY = "test:idempotency/op/k"
OTHER = "test:idempotency/op/k:changed"
LEASE_MS, TTL_MS = 60_000, 600_000
LATE_MS = 2_000
"""How much the test itself may take between two steps that share a lease."""

owners = st.sampled_from(["a", "b", "c"])
payloads = st.sampled_from(["h1", "h1", "h2"])
generations = st.integers(0, 4)
bodies = st.sampled_from([b"", b"\x00\xff", b'{"a":1}'])


class RecordMachine(RuleBasedStateMachine):
    """One record on the server beside the pure functions; time is moved by editing both."""

    server: redis.Redis

    def __init__(self) -> None:
        super().__init__()
        self.server.flushall()
        self.now = 0
        self.expires = 0
        self.expected: Record | None = None
        self.last: tuple[str, str] = ("a", "h1")

    def call(self, script: Any, *args: object) -> Any:
        return self.server.eval(script.source, 1, KEY, *args)  # type: ignore[arg-type]

    def moved(self, after: Record | None, granted: bool) -> None:
        if granted:
            self.expires = self.now + TTL_MS
        self.expected = after

    @rule(owner=owners, payload=payloads)
    def claim(self, owner: str, payload: str) -> None:
        self.last = owner, payload
        answer = self.call(scripts.CLAIM, owner, payload, LEASE_MS, TTL_MS)
        after, expected = transitions.claim(self.expected, owner, payload, LEASE_MS, self.now)
        self.moved(after, isinstance(expected, Granted))
        assert shown(answer) == described(expected)

    @rule()
    def claim_again(self) -> None:
        """The same attempt, because its reply was lost."""
        self.claim(*self.last)

    @rule(owner=owners, generation=generations)
    def beat(self, owner: str, generation: int) -> None:
        held = self.call(scripts.BEAT, owner, generation, LEASE_MS, TTL_MS)
        after, expected = transitions.beat(self.expected, owner, generation, LEASE_MS, self.now)
        self.moved(after, expected)
        assert bool(held) is expected

    @rule(owner=owners, generation=generations, body=bodies, twice=st.booleans())
    def complete(self, owner: str, generation: int, body: bytes, twice: bool) -> None:
        before = self.expected
        for _ in range(1 + twice):
            stored = self.call(scripts.COMPLETE, owner, generation, TTL_MS, 200, "{}", body)
            snapshot = IdempotencySnapshot(200, None, body)
            after, expected = transitions.complete(self.expected, owner, generation, snapshot)
            self.moved(after, expected and after is not before)
            before = after
            assert bool(stored) is expected

    @rule(owner=owners, generation=generations)
    def release(self, owner: str, generation: int) -> None:
        freed = self.call(scripts.RELEASE, owner, generation, TTL_MS)
        after, expected = transitions.release(self.expected, owner, generation)
        self.moved(after, expected)
        assert bool(freed) is expected

    @rule(body=bodies)
    def the_holder_completes(self, body: bytes) -> None:
        """The short way to a state that chance seldom finds."""
        if self.expected is not None:
            self.complete(self.expected.owner, self.expected.generation, body, False)

    @rule(by=st.sampled_from([LEASE_MS // 2, LEASE_MS + LATE_MS, TTL_MS // 2]))
    def advance(self, by: int) -> None:
        self.now += by
        if self.server.exists(KEY):
            left = int(self.server.pttl(KEY))
            if self.server.hexists(KEY, "lease"):
                self.server.hincrby(KEY, "lease", -by)
            self.server.pexpire(KEY, left - by)
        if self.expires <= self.now + LATE_MS:
            self.server.delete(KEY)
            self.expected = None

    @rule()
    def evict(self) -> None:
        self.server.delete(KEY)
        self.expected = None

    @rule()
    def script_flush(self) -> None:
        self.server.script_flush()

    @invariant()
    def same_state(self) -> None:
        raw: dict[bytes, bytes] = self.server.hgetall(KEY)  # type: ignore[assignment] # synchronous
        fields = {name.decode(): value for name, value in raw.items()}
        assert self.server.dbsize() == (1 if fields else 0)
        if self.expected is None:
            assert fields == {}
            return
        expected = self.expected
        assert fields["state"].decode() == expected.state
        assert int(fields["generation"]) == expected.generation
        assert fields.get("owner", b"").decode() == expected.owner
        assert fields.get("payload", b"").decode() == expected.payload_hash
        assert ("lease" in fields) is (expected.state is State.PENDING)
        if "lease" in fields:
            seconds, microseconds = self.server.time()
            left = int(fields["lease"]) - (seconds * 1000 + microseconds // 1000)
            assert 0 <= expected.lease_until - self.now - left < LATE_MS
        if expected.snapshot is not None:
            assert fields["body"] == expected.snapshot.body
        kept = int(self.server.pttl(KEY))
        assert 0 <= self.expires - self.now - kept < LATE_MS


def shown(answer: Sequence[Any]) -> tuple[Any, ...]:
    """What a script answered; a lease's rest to the second."""
    word = answer[0].decode()
    if word == "busy":
        return word, -(-answer[1] // LATE_MS)
    return (word, answer[3]) if word == "completed" else (word, *answer[1:])


def described(answer: Answer) -> tuple[Any, ...]:
    """The same of what a transition answered."""
    match answer:
        case Granted(generation, how):
            return how, generation
        case Busy(left):
            return "busy", -(-left // LATE_MS)
        case Completed(snapshot):
            return "completed", snapshot.body
        case Mismatched():
            return ("mismatch",)


def test_scripts_carry_out_the_transitions(redis_dsn: str) -> None:
    """Every script, in any order, with time, eviction and SCRIPT FLUSH in between."""
    with redis.Redis.from_url(redis_dsn) as server:
        machine = type("Machine", (RecordMachine,), {"server": server})
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=60,
                stateful_step_count=40,
                deadline=None,
                derandomize=True,
                suppress_health_check=list(HealthCheck),
            ),
        )


def test_a_full_server_still_frees_and_keeps_up(valkey_dsn: str) -> None:
    """Out of memory nothing new is claimed, and what is held is not lost for it."""
    with redis.Redis.from_url(valkey_dsn) as server:
        for key, script in ((KEY, scripts.RELEASE), (KEY + "2", scripts.BEAT)):
            server.eval(scripts.CLAIM.source, 1, key, "a", "h", LEASE_MS, TTL_MS)
            server.config_set("maxmemory", "1")
            try:
                with pytest.raises(redis.ResponseError, match="maxmemory"):
                    server.eval(scripts.CLAIM.source, 1, KEY + "3", "a", "h", LEASE_MS, TTL_MS)
                last = [TTL_MS] if script is scripts.RELEASE else [LEASE_MS, TTL_MS]
                assert server.eval(script.source, 1, key, "a", 1, *last) == 1
            finally:
                server.config_set("maxmemory", "0")


def test_another_type_of_value_is_left_alone(valkey_dsn: str) -> None:
    with redis.Redis.from_url(valkey_dsn) as server:
        server.set(KEY, "somebody's")
        for script in (scripts.CLAIM, scripts.BEAT, scripts.COMPLETE, scripts.RELEASE):
            with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
                server.eval(script.source, 1, KEY, "a", "1", LEASE_MS, TTL_MS, "", "")
        assert server.get(KEY) == b"somebody's"


def test_the_first_answer_stays(valkey_dsn: str) -> None:
    """A late repeat of the same owner's commit is told it stands, and changes nothing."""
    with redis.Redis.from_url(valkey_dsn) as server:
        server.eval(scripts.CLAIM.source, 1, KEY, "a", "h", LEASE_MS, TTL_MS)
        for body in ("first", "second"):
            stored = server.eval(scripts.COMPLETE.source, 1, KEY, "a", 1, TTL_MS, 200, "{}", body)
            assert stored == 1
        assert server.hget(KEY, "body") == b"first"


def test_without_the_right_to_publish_the_answer_stands(valkey_dsn: str) -> None:
    """Nobody is told, and nothing is half done."""
    with redis.Redis.from_url(valkey_dsn) as server:
        server.execute_command(
            "ACL", "SETUSER", "mute", "on", ">pw", "~*", "resetchannels", "+@all"
        )
        try:
            with redis.Redis.from_url(valkey_dsn, username="mute", password="pw") as mute:
                mute.eval(scripts.CLAIM.source, 1, KEY, "a", "h", LEASE_MS, TTL_MS)
                last = (TTL_MS, 200, "{}", "body")
                assert mute.eval(scripts.COMPLETE.source, 1, KEY, "a", 1, *last) == 1
        finally:
            server.execute_command("ACL", "DELUSER", "mute")
        assert server.hget(KEY, "state") == b"completed"


def test_whoever_listens_hears_of_the_end(valkey_dsn: str) -> None:
    """Of an answer and of a release, once each, and of nothing else."""
    with redis.Redis.from_url(valkey_dsn) as server, server.pubsub() as heard:
        heard.ssubscribe(f"{KEY}:changed")
        assert heard.get_sharded_message(timeout=5)["type"] == "ssubscribe"
        server.eval(scripts.CLAIM.source, 1, KEY, "a", "h", LEASE_MS, TTL_MS)
        server.eval(scripts.BEAT.source, 1, KEY, "a", 1, LEASE_MS, TTL_MS)
        server.eval(scripts.CLAIM.source, 1, KEY, "b", "h", LEASE_MS, TTL_MS)
        server.eval(scripts.RELEASE.source, 1, KEY, "b", 0, TTL_MS)
        server.eval(scripts.RELEASE.source, 1, KEY, "a", 1, TTL_MS)
        server.eval(scripts.CLAIM.source, 1, KEY, "b", "h", LEASE_MS, TTL_MS)
        for _ in range(2):
            server.eval(scripts.COMPLETE.source, 1, KEY, "b", 2, TTL_MS, 200, "{}", "")
        told = [heard.get_sharded_message(timeout=5)["data"] for _ in range(2)]
        assert told == [b"free", b"completed"]
        assert heard.get_sharded_message(timeout=0.01) is None


# -- names ---------------------------------------------------------------------

alphabet = st.sampled_from(list("aA0f/%:{}é\n ~.-")) | st.characters(exclude_categories=["Cs"])
parts = st.text(alphabet, min_size=1, max_size=20)
keys = (
    parts
    | st.text(alphabet, min_size=1, max_size=12).map(lambda text: (text * 64)[:63])
    | st.text("0123456789abcdef", min_size=64, max_size=64)
    | st.text("ab", min_size=120, max_size=140)
)
principals = st.none() | parts


def named(spelled: Any, principal: str | None, operation: str, key: str) -> str:
    """The name of a record under a principal."""
    if principal is None:
        return str(spelled(*record_parts(operation, key)))
    with bind_principal(principal):
        return str(spelled(*record_parts(operation, key)))


@settings(max_examples=400, derandomize=True, deadline=None)
@given(
    one=st.tuples(principals, parts, keys),
    other=st.tuples(principals, parts, keys),
    tenants=st.tuples(parts, parts),
)
def test_no_two_requests_share_a_record(
    one: tuple[str | None, str, str], other: tuple[str | None, str, str], tenants: tuple[str, str]
) -> None:
    client = RedisClient()
    for tenant_aware in (False, True):
        keys = ResourceKeys(
            client, RedisIdempotencyConfig(namespace="n", tenant_aware=tenant_aware), "x"
        )
        addresses = ResourceAddresses(
            MemoryResourceConfig(namespace="n", tenant_aware=tenant_aware), "n", "x"
        )
        with bind_tenant(tenants[0]):
            first = named(keys.of, *one)
            assert first == named(addresses.of, *one), "memory spells them the same"
        with bind_tenant(tenants[1]):
            second = named(keys.of, *other)
        same = one == other and (not tenant_aware or tenants[0] == tenants[1])
        assert (first == second) is same
        assert re.fullmatch(r"n(/[A-Za-z0-9_.~:%-]+){2,4}", first)


def test_a_key_that_looks_like_a_hash_meets_none() -> None:
    """Whoever knows another's long key could otherwise spell its hash."""
    long = "k" * 200
    (_, hashed) = record_parts("op", long)
    assert re.fullmatch("[0-9a-f]{64}", hashed)
    assert record_parts("op", hashed)[1] != hashed
    assert record_parts("op", "k" * 128)[1] == "k" * 128
    assert record_parts("op", hashed.upper())[1] == hashed.upper()
