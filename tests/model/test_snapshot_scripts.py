"""The scripts of snapshots do on a real server what a list does: the whole of it, or nothing."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from forze.application.contracts.search import ResultId
from forze.application.integrations.snapshotting import Run
from forze_redis import search_snapshot as scripts
from forze_redis.packed_ids import pack_run, unpack_header, unpack_page

KEY = "app:results/r"
WRITERS = f"{KEY}!writers"
STAGED_MS, LIFE_MS = 60_000, 120_000
TOKENS = ["t1", "t2"]

tokens = st.sampled_from(TOKENS)
ids: st.SearchStrategy[ResultId] = st.one_of(
    st.uuids(), st.integers(), st.integers(-3, 3), st.text(st.characters(), max_size=9),
    st.uuids().map(str),
)  # fmt: skip
lists = st.one_of(
    st.lists(ids, max_size=6),
    st.lists(st.uuids(), max_size=6),
    st.lists(st.uuids().map(str), max_size=6),
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=6),
)
runs = st.builds(Run, st.sampled_from(["f", "g", "é"]), lists, st.booleans())


class SnapshotMachine(RuleBasedStateMachine):
    """One run and two writers on the server, beside a tuple and two byte strings."""

    server: redis.Redis

    def __init__(self) -> None:
        super().__init__()
        self.server.flushall()
        self.run: Run | None = None
        self.writing: dict[str, tuple[Run, bytes, int]] = {}
        self.struck: set[str] = set()
        self.lost: set[str] = set()

    def call(self, script: Any, keys: list[str], *args: object) -> Any:
        return self.server.eval(script.source, len(keys), *keys, *args)  # type: ignore[arg-type]

    @rule(run=runs)
    def put_whole(self, run: Run) -> None:
        self.server.set(KEY, pack_run(run), px=LIFE_MS)
        self.run = run

    @rule(token=tokens, run=runs, first=st.integers(1, 30))
    def begin(self, token: str, run: Run, first: int) -> None:
        packed = pack_run(run)
        part = packed[:first]
        assert self.call(scripts.STAGE, [f"{KEY}!{token}", WRITERS], token, 0, STAGED_MS, part) == 1
        self.writing[token] = run, packed, len(part)
        self.struck.discard(token)
        self.lost.discard(token)

    @rule(token=tokens, length=st.integers(0, 30), off=st.sampled_from([0, 0, 0, -1, 7]))
    def go_on(self, token: str, length: int, off: int) -> None:
        if token not in self.writing:
            return
        run, packed, at = self.writing[token]
        part = packed[at : at + length]
        told = max(at + off, 1)
        keys = [f"{KEY}!{token}", WRITERS]
        answer = self.call(scripts.STAGE, keys, token, told, STAGED_MS, part)
        taken = told == at and token not in self.struck | self.lost
        assert answer == int(taken)
        if taken:
            self.writing[token] = run, packed, at + len(part)

    @rule(token=tokens, off=st.sampled_from([0, 0, 0, -1, 7]))
    def publish(self, token: str, off: int) -> None:
        if token not in self.writing:
            return
        run, packed, at = self.writing[token]
        told = max(at + off, 1)
        keys = [f"{KEY}!{token}", WRITERS, KEY]
        answer = self.call(scripts.PUBLISH, keys, token, told, LIFE_MS, packed[at:])
        taken = told == at and token not in self.struck | self.lost
        assert answer == int(taken)
        if taken:
            self.run = run
            del self.writing[token]

    @rule(token=tokens)
    def repeat_the_publication(self, token: str) -> None:
        """What was published already, or never begun, is refused."""
        if token in self.writing:
            return
        keys = [f"{KEY}!{token}", WRITERS, KEY]
        assert self.call(scripts.PUBLISH, keys, token, 5, LIFE_MS, "x") == 0
        assert self.call(scripts.STAGE, keys[:2], token, 5, STAGED_MS, "x") == 0

    @rule(
        expected=st.sampled_from(["", "f", "g"]), offset=st.integers(0, 8), limit=st.integers(1, 8)
    )
    def page(self, expected: str, offset: int, limit: int) -> None:
        reply = self.call(scripts.PAGE, [KEY], expected, offset, limit)
        if self.run is None or expected not in ("", self.run.fingerprint):
            assert reply is None
            return
        wanted = self.run.ids[offset : offset + limit]
        found = unpack_page(*reply)
        assert (found, list(map(type, found))) == (wanted, list(map(type, wanted)))
        assert len(reply[2]) <= sum(
            len(str(each).encode(errors="surrogatepass")) + 17 for each in wanted
        )

    @rule()
    def meta(self) -> None:
        reply = self.call(scripts.META, [KEY, WRITERS])
        if self.run is None:
            assert reply == int(self.server.exists(WRITERS))
            assert reply == int(any(each not in self.struck for each in self.writing))
            return
        header, fingerprint, left = reply
        assert unpack_header(header) == (len(self.run.ids), self.run.truncated)
        assert fingerprint.decode() == self.run.fingerprint
        assert 0 < left <= LIFE_MS

    @rule()
    def delete(self) -> None:
        existed, struck = self.call(scripts.DELETE, [KEY, WRITERS])
        assert bool(existed) is (self.run is not None)
        assert {each.decode() for each in struck} == set(self.writing) - self.struck
        self.struck |= set(self.writing)
        self.run = None

    @rule(token=tokens)
    def lapse(self, token: str) -> None:
        self.server.delete(f"{KEY}!{token}")
        if token in self.writing:
            self.lost.add(token)

    @rule()
    def evict(self) -> None:
        self.server.delete(KEY)
        self.run = None

    @rule()
    def script_flush(self) -> None:
        self.server.script_flush()

    @invariant()
    def everything_expires(self) -> None:
        for key in self.server.keys("*"):
            assert 0 < self.server.pttl(key) <= (LIFE_MS if key == KEY.encode() else STAGED_MS)

    @invariant()
    def the_run_is_whole(self) -> None:
        stored = self.server.get(KEY)
        assert stored == (None if self.run is None else pack_run(self.run))


def test_a_run_is_there_as_a_whole_or_not(redis_dsn: str) -> None:
    with redis.Redis.from_url(redis_dsn) as server:
        machine = type("Machine", (SnapshotMachine,), {"server": server})
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=60,
                stateful_step_count=40,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )


@given(run=runs, offset=st.integers(0, 7), limit=st.integers(1, 7))
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_every_list_comes_back(valkey_dsn: str, run: Run, offset: int, limit: int) -> None:
    with redis.Redis.from_url(valkey_dsn) as server:
        server.set(KEY, pack_run(run))
        reply: Any = server.eval(scripts.PAGE.source, 1, KEY, "", offset, limit)
        found = unpack_page(*reply)
        wanted = run.ids[offset : offset + limit]
        assert (found, list(map(type, found))) == (wanted, list(map(type, wanted)))


def test_a_part_that_is_missing_is_noticed(redis_dsn: str) -> None:
    keys = [f"{KEY}!t", WRITERS, KEY]
    with redis.Redis.from_url(redis_dsn) as server:
        server.set(KEY, "as it was", px=LIFE_MS)
        server.eval(scripts.STAGE.source, 2, *keys[:2], "t", 0, STAGED_MS, "first")
        for told in (1, 4, 6, 10):
            assert server.eval(scripts.PUBLISH.source, 3, *keys, "t", told, LIFE_MS, "last") == 0
        assert server.get(KEY) == b"as it was"
        assert server.eval(scripts.PUBLISH.source, 3, *keys, "t", 5, LIFE_MS, "last") == 1
        assert server.get(KEY) == b"firstlast"


def test_width_is_fixed_where_it_can_be() -> None:
    """16 bytes for a UUID, as object or as text, 8 for an integer: the rest is overhead."""
    uuids: list[ResultId] = [UUID(int=each) for each in range(1_000)]
    texts: list[ResultId] = [str(each) for each in uuids]
    for listed, width in ((uuids, 16), (texts, 16), (list(range(1_000)), 8)):
        assert len(pack_run(Run("f", listed, False))) == 22 + 1 + 1_000 * width


@pytest.mark.parametrize("stored", ["", "x", "FRS1u", "FRS2u00000000010000001f", "x" * 40])
def test_what_is_no_run_is_told_apart(redis_dsn: str, stored: str) -> None:
    with redis.Redis.from_url(redis_dsn) as server:
        server.set(KEY, stored)
        reply: Any = server.eval(scripts.PAGE.source, 1, KEY, "", 0, 5)
        assert reply is None if stored == "" else reply == 0
        reply = server.eval(scripts.META.source, 2, KEY, WRITERS)
        assert reply == 0 if stored == "" else unpack_header(reply[0]) is None
