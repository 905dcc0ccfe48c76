"""The scripts of locks and semaphores do on a real server what the transition functions say."""

from __future__ import annotations

import contextlib
import socket
from typing import Any, ClassVar

import hiredis
import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from forze.application.integrations.locks.protocol import Answer, LockState, SemaphoreState
from forze.testing.servers import RespServer
from forze_redis import dlock, semaphore
from forze_redis.wire.scripts import Script

SECOND_US = 1_000_000
LEASES_S = (50, 90)
WAIT_S = 30
STEP_S = 20
"""No sum of steps comes near the end of a lease or of a wait, so that real time does not matter."""

KEY = "app:jobs/k"
owners = st.sampled_from(["wa", "wb", "wc", "ra", "rb", "rc"])
leases = st.sampled_from(LEASES_S)


class Listener:
    """Hears who is called, on a connection of its own."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self._reader = hiredis.Reader()
        for process in "abc":
            self._send("SSUBSCRIBE", f"{KEY}:turns:{process}")
            assert self._read()[0] == b"ssubscribe"

    def heard(self) -> list[str]:
        """Who was called since last asked, each on the channel of its process."""
        self._send("PING")
        called: list[str] = []
        while (message := self._read())[0] != b"pong":
            kind, channel, owner = message
            assert kind == b"smessage"
            assert channel.endswith(b":turns:" + owner[1:])
            called.append(owner.decode())
        return called

    def close(self) -> None:
        self._socket.close()

    def _send(self, *command: str) -> None:
        self._socket.sendall(hiredis.pack_command(command))  # type: ignore[arg-type]

    def _read(self) -> list[Any]:
        while (message := self._reader.gets()) is False:
            self._reader.feed(self._socket.recv(4096))
        assert isinstance(message, list)
        return message


class Keeper(RuleBasedStateMachine):
    """A model and the keys on the server, moved through time together."""

    server: ClassVar[Any]
    listener: ClassVar[Listener]
    deadlines: ClassVar[tuple[str, ...]]
    """The sorted sets whose scores are times."""

    def __init__(self) -> None:
        super().__init__()
        self.server.flushall()
        self.now = 1000 * SECOND_US
        self.stamp = 1
        self.real: dict[int, int] = {0: 0}
        """What the server calls the model's tokens; both rise together."""

    def call(self, script: Script, keys: list[str], *args: object) -> Any:
        try:
            return self.server.evalsha(script.sha1, len(keys), *keys, *args)
        except redis.exceptions.NoScriptError:
            return self.server.eval(script.source, len(keys), *keys, *args)

    def tick(self) -> int:
        self.stamp += 1
        return self.stamp

    def compare(self, answer: Answer, reply: Any) -> None:
        granted, number = reply
        assert bool(granted) is (answer.token is not None)
        if answer.token is None:
            assert abs(number * 1000 - answer.free_in) < 3 * SECOND_US
        elif answer.token in self.real:
            assert number == self.real[answer.token]
        else:
            assert number > max(self.real.values())
            self.real[answer.token] = number

    def called(self) -> list[str]:
        """Who was called by the last script."""
        return self.listener.heard()

    @rule(steps=st.integers(1, 3))
    def time_passes(self, steps: int) -> None:
        by_s = steps * STEP_S
        self.now += by_s * SECOND_US
        for key in self.server.scan_iter():
            name = key.decode()
            if name.removeprefix(KEY) in self.deadlines:
                for member, score in self.server.zrange(name, 0, -1, withscores=True):
                    self.server.zadd(name, {member: score - by_s * SECOND_US})
            left = self.server.pttl(name)
            if left >= 0:
                self.server.pexpire(name, max(0, left - by_s * 1000))

    @rule()
    def scripts_are_flushed(self) -> None:
        self.server.script_flush()

    @invariant()
    def nothing_but_the_fence_stays_for_good(self) -> None:
        for key in self.server.scan_iter():
            name = key.decode()
            assert name.startswith(KEY)
            assert (self.server.pttl(name) == -1) is (name == f"{KEY}:fence"), name


class LockMachine(Keeper):
    """One lock, alone and shared."""

    deadlines = (":readers", ":waiting")
    state: ClassVar = [KEY, f"{KEY}:readers"]
    line: ClassVar = [f"{KEY}:queue", f"{KEY}:waiting"]

    def __init__(self) -> None:
        super().__init__()
        self.model = LockState()

    @rule(owner=owners, lease=leases, waits=st.booleans())
    def acquire(self, owner: str, lease: int, waits: bool) -> None:
        shared, wait = owner.startswith("r"), WAIT_S if waits else 0
        before, left_ms = self.dump(), self.server.pttl(KEY)
        answer = self.model.acquire(
            owner,
            shared=shared,
            now=self.now,
            stamp=self.tick(),
            lease=lease * SECOND_US,
            wait=wait * SECOND_US,
        )
        keys = [KEY, f"{KEY}:fence", f"{KEY}:readers", *self.line]
        reply = self.call(dlock.ACQUIRE, keys, owner, int(shared), lease * 1000, wait * 1000)
        self.compare(answer, reply)
        assert self.called() == []
        if answer.token is None and not waits:
            assert self.dump() == before, "a refusal writes nothing"
            assert 0 <= left_ms - self.server.pttl(KEY) < 3000

    @rule(owner=owners, lease=leases, token=st.sampled_from(["any", "its", "earlier"]))
    def extend(self, owner: str, lease: int, token: str) -> None:
        shared = owner.startswith("r")
        which, named = self.token(token)
        lived = self.model.extend(
            owner, which, shared=shared, now=self.now, lease=lease * SECOND_US
        )
        reply = self.call(dlock.EXTEND, self.state, owner, named, int(shared), lease * 1000)
        assert bool(reply) is lived

    @rule(owner=owners, token=st.sampled_from(["any", "its", "earlier"]))
    def release(self, owner: str, token: str) -> None:
        shared = owner.startswith("r")
        which, named = self.token(token)
        held, called = self.model.release(owner, which, shared=shared, now=self.now)
        keys = [*self.state, *self.line, f"{KEY}:turns:"]
        reply = self.call(dlock.RELEASE, keys, owner, named, int(shared))
        assert bool(reply) is held
        assert self.called() == called

    @rule(waiting=st.lists(owners, unique=True, max_size=3))
    def look(self, waiting: list[str]) -> None:
        free_in, called = self.model.look(waiting, now=self.now, wait=WAIT_S * SECOND_US)
        keys = [*self.state, *self.line, f"{KEY}:turns:"]
        reply = self.call(dlock.WAIT, keys, WAIT_S * 1000, *waiting)
        assert abs(reply[0] * 1000 - free_in) < 3 * SECOND_US
        assert [each.decode() for each in reply[1:]] == called
        assert self.called() == called

    @rule(key=st.sampled_from(["", ":fence", ":readers", ":queue", ":waiting"]))
    def a_key_is_evicted(self, key: str) -> None:
        self.server.delete(KEY + key)
        if key == "":
            self.model.holding = None
        elif key == ":fence":
            self.model.last = 0
        elif key == ":readers":
            self.model.readers.clear()
        else:
            self.model.line.until.clear()

    def token(self, which: str) -> tuple[int | None, object]:
        """A token as the model has it, and as the server has it."""
        if which == "any":
            return None, ""
        holding = self.model.holding
        token = holding.token if holding is not None and which == "its" else min(self.real)
        return token, self.real.get(token, 0)

    def dump(self) -> dict[bytes, object]:
        """What the server holds and still counts."""
        self.model.prune(self.now)
        found: dict[bytes, object] = {}
        found[b"lock"] = self.server.get(KEY)
        for name, living in (
            (":readers", self.model.readers),
            (":queue", self.model.line.until),
            (":waiting", self.model.line.until),
        ):
            members = self.server.zrange(KEY + name, 0, -1, withscores=True)
            found[name.encode()] = [each for each in members if each[0].decode() in living]
        return found

    @invariant()
    def the_same_hold(self) -> None:
        self.model.prune(self.now)
        value, holding = self.server.get(KEY), self.model.holding
        assert (value is None) is (holding is None)
        if holding is not None:
            assert value == f"{holding.owner}|{self.real[holding.token]}".encode()
            left = holding.until - self.now
            assert abs(self.server.pttl(KEY) * 1000 - left) < 3 * SECOND_US

    @invariant()
    def the_same_read(self) -> None:
        until = self.server.zrange(f"{KEY}:readers", 0, -1, withscores=True)
        seconds, microseconds = self.server.time()
        now = seconds * SECOND_US + microseconds
        living = {each.decode(): end - now for each, end in until if end > now}
        assert living.keys() == self.model.readers.keys()
        for owner, left in living.items():
            assert abs(left - (self.model.readers[owner] - self.now)) < 3 * SECOND_US


class SemaphoreMachine(Keeper):
    """One semaphore."""

    deadlines = ("", ":waiting")
    state: ClassVar = [KEY, f"{KEY}:tokens"]
    line: ClassVar = [f"{KEY}:queue", f"{KEY}:waiting"]
    permits = st.sampled_from([1, 2, 2, 3])

    def __init__(self) -> None:
        super().__init__()
        self.model = SemaphoreState()

    @rule(owner=owners, permits=permits, lease=leases, waits=st.booleans())
    def acquire(self, owner: str, permits: int, lease: int, waits: bool) -> None:
        wait = WAIT_S if waits else 0
        answer = self.model.acquire(
            owner,
            permits,
            now=self.now,
            stamp=self.tick(),
            lease=lease * SECOND_US,
            wait=wait * SECOND_US,
        )
        keys = [*self.state, f"{KEY}:fence", *self.line]
        reply = self.call(semaphore.ACQUIRE, keys, owner, permits, lease * 1000, wait * 1000)
        self.compare(answer, reply)
        assert self.called() == []

    @rule(owner=owners, lease=leases)
    def extend(self, owner: str, lease: int) -> None:
        lived = self.model.extend(owner, now=self.now, lease=lease * SECOND_US)
        assert bool(self.call(semaphore.EXTEND, self.state, owner, lease * 1000)) is lived

    @rule(owner=owners, permits=permits)
    def release(self, owner: str, permits: int) -> None:
        held, called = self.model.release(owner, permits, now=self.now)
        keys = [*self.state, *self.line, f"{KEY}:turns:"]
        assert bool(self.call(semaphore.RELEASE, keys, owner, permits)) is held
        assert self.called() == called

    @rule(waiting=st.lists(owners, unique=True, max_size=3), permits=permits)
    def look(self, waiting: list[str], permits: int) -> None:
        free_in, called = self.model.look(waiting, permits, now=self.now, wait=WAIT_S * SECOND_US)
        keys = [*self.state, *self.line, f"{KEY}:turns:"]
        reply = self.call(semaphore.WAIT, keys, permits, WAIT_S * 1000, *waiting)
        assert abs(reply[0] * 1000 - free_in) < 3 * SECOND_US
        assert [each.decode() for each in reply[1:]] == called
        assert self.called() == called

    @rule()
    def held(self) -> None:
        self.model.prune(self.now)
        assert self.call(semaphore.HELD, [KEY]) == len(self.model.holders)

    @precondition(lambda self: self.model.last)
    @rule(key=st.sampled_from(["", ":fence", ":queue", ":waiting"]))
    def a_key_is_evicted(self, key: str) -> None:
        self.server.delete(KEY + key)
        if key == "":
            self.model.holders.clear()
        elif key == ":fence":
            self.model.last = 0
        else:
            self.model.line.until.clear()

    @invariant()
    def the_same_hold(self) -> None:
        self.model.prune(self.now)
        seconds, microseconds = self.server.time()
        now = seconds * SECOND_US + microseconds
        until = self.server.zrange(KEY, 0, -1, withscores=True)
        living = {each.decode(): end - now for each, end in until if end > now}
        assert living.keys() == self.model.holders.keys()
        for owner, left in living.items():
            assert abs(left - (self.model.holders[owner] - self.now)) < 3 * SECOND_US
            token = self.server.zscore(f"{KEY}:tokens", owner)
            assert token == self.real[self.model.tokens[owner]]


@pytest.mark.parametrize("machine", [LockMachine, SemaphoreMachine])
def test_the_scripts_and_the_model_agree(
    machine: type[Keeper],
    redis_server: RespServer,
    redis_dsn: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    listener = Listener(redis_server.port)
    with redis.Redis.from_url(redis_dsn) as server, contextlib.closing(listener):
        monkeypatch.setattr(Keeper, "listener", listener, raising=False)
        monkeypatch.setattr(Keeper, "server", server, raising=False)
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=100,
                stateful_step_count=40,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )


@pytest.fixture
def run(redis_dsn: str) -> Any:
    """Runs a script on an empty server."""
    with redis.Redis.from_url(redis_dsn) as server:

        def call(script: Script, keys: list[str], *args: object) -> Any:
            return server.eval(script.source, len(keys), *keys, *args)

        call.server = server  # type: ignore[attr-defined]
        yield call


ACQUIRE_KEYS = [KEY, f"{KEY}:fence", f"{KEY}:readers", f"{KEY}:queue", f"{KEY}:waiting"]


def test_tokens_survive_the_loss_of_the_counter_and_a_clock_that_steps_back(run: Any) -> None:
    """A bare INCR would begin at 1 again; a bare clock would repeat itself."""
    seen: list[int] = []
    for loss in ([], [KEY], [KEY, f"{KEY}:fence"], [KEY]):
        if loss:
            run.server.delete(*loss)
        seen.append(run(dlock.ACQUIRE, ACQUIRE_KEYS, f"w{len(seen)}", 0, 60_000, 0)[1])
    assert seen == sorted(set(seen))
    ahead = seen[-1] + 3600 * SECOND_US
    run.server.delete(KEY)
    run.server.set(f"{KEY}:fence", ahead)  # given before the clock stepped back an hour
    assert run(dlock.ACQUIRE, ACQUIRE_KEYS, "w", 0, 60_000, 0)[1] == ahead + 1


def test_another_value_under_the_key_is_left_alone(run: Any) -> None:
    """What is not ours is in the way, for good, and is neither released nor extended."""
    run.server.set(KEY, "somebody else's")
    assert run(dlock.ACQUIRE, ACQUIRE_KEYS, "w", 0, 60_000, 0) == [0, 0]
    assert run(dlock.EXTEND, [KEY, f"{KEY}:readers"], "w", "", 0, 60_000) == 0
    keys = [KEY, f"{KEY}:readers", f"{KEY}:queue", f"{KEY}:waiting", f"{KEY}:turns:"]
    assert run(dlock.RELEASE, keys, "w", "", 0) == 0
    assert run.server.get(KEY) == b"somebody else's"


def test_a_lease_in_its_last_millisecond_is_still_in_the_way(run: Any) -> None:
    """Taken for none, it would be looked at again only when nothing is expected."""
    for _ in range(5):
        assert run(dlock.ACQUIRE, ACQUIRE_KEYS, "wa", 0, 3, 0)[0] == 1
        granted = 0
        while not granted:
            granted, number = run(dlock.ACQUIRE, ACQUIRE_KEYS, "wb", 0, 3, 0)
            assert number > 0
        run.server.delete(KEY)


def test_a_reader_extends_only_itself(run: Any) -> None:
    for owner in ("ra", "rb"):
        assert run(dlock.ACQUIRE, ACQUIRE_KEYS, owner, 1, 10_000, 0)[0] == 1
    before = run.server.zscore(f"{KEY}:readers", "rb")
    assert run(dlock.EXTEND, [KEY, f"{KEY}:readers"], "ra", "", 1, 60_000) == 1
    assert run.server.zscore(f"{KEY}:readers", "rb") == before
    assert run.server.zscore(f"{KEY}:readers", "ra") > before + 40 * SECOND_US


def test_a_line_that_lost_its_times_blocks_nobody(run: Any) -> None:
    """Evicted by itself, it would leave a head that never lapses."""
    assert run(dlock.ACQUIRE, ACQUIRE_KEYS, "wa", 0, 60_000, 0)[0] == 1
    assert run(dlock.ACQUIRE, ACQUIRE_KEYS, "wb", 0, 60_000, 60_000)[0] == 0
    run.server.delete(KEY, f"{KEY}:waiting")
    assert run(dlock.ACQUIRE, ACQUIRE_KEYS, "wc", 0, 60_000, 0)[0] == 1
