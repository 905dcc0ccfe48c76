"""Processes that take one lock, stopped and killed among faults of the network and the server.

What each of them believed is compared afterwards: no two at once, tokens in the order of the
grants, and not one write under an overtaken token.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import pytest
from tests.architecture.tree import ROOT

from forze.testing.proxy import Hold, RespProxy, script
from forze.testing.servers import ValkeyServer
from forze_redis import dlock
from forze_redis.dlock import sleepless_clock
from forze_redis.wire.scripts import Script

TTL_MS = 300
SECONDS = 6.0
SCRIPTS = dlock.ACQUIRE, dlock.EXTEND, dlock.RELEASE, dlock.WAIT

T = TypeVar("T")


class Belief(NamedTuple):
    """From when to when a process believed that it held the lock, under which token."""

    start: float
    end: float
    token: int


class Fleet:
    """Workers, and when each that was killed died."""

    def __init__(self, dsn: str, directory: Path) -> None:
        self._dsn, self.directory = dsn, directory
        self.workers: list[subprocess.Popen[bytes]] = []
        self.died: dict[int, float] = {}

    def add(self, how: str = "briefly") -> subprocess.Popen[bytes]:
        arguments = [self._dsn, str(self.directory), str(TTL_MS), how]
        command = [sys.executable, "-m", "tests.faults.lock_worker", *arguments]
        with (self.directory / "errors").open("ab") as errors:
            worker = subprocess.Popen(command, cwd=ROOT, stderr=errors)
        self.workers.append(worker)
        return worker

    def kill(self, worker: subprocess.Popen[bytes]) -> None:
        worker.kill()
        worker.wait()
        self.died[worker.pid] = sleepless_clock()
        self.workers.remove(worker)

    def stop_one(self, seconds: float) -> None:
        """Whoever believes that it holds the lock, if anybody does."""
        worker = self.holder() or random.choice(self.workers)
        os.kill(worker.pid, signal.SIGSTOP)
        time.sleep(seconds)
        os.kill(worker.pid, signal.SIGCONT)

    def holder(self) -> subprocess.Popen[bytes] | None:
        """Who began last, and has not ended."""
        begun = [line for line in self.log() if line[1] in ("start", "end")][-1:]
        pids = [int(pid) for pid, what, *_ in begun if what == "start"]
        return next((each for each in self.workers if each.pid in pids), None)

    def replace_one(self) -> None:
        self.kill(self.holder() or random.choice(self.workers))
        self.add()

    def wait_for(self, worker: subprocess.Popen[bytes], what: str) -> list[str]:
        """The first line of its log that says so."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            for line in self.log():
                if line[:2] == [str(worker.pid), what]:
                    return line
            time.sleep(0.005)
        raise TimeoutError(f"{what!r} is not among {self.log()}")

    def log(self) -> list[list[str]]:
        with contextlib.suppress(FileNotFoundError):
            return [line.split() for line in (self.directory / "log").read_text().splitlines()]
        return []

    def beliefs(self) -> list[Belief]:
        """In the order in which they began; one that never ended did when its process died."""
        begun: dict[tuple[str, str], float] = {}
        found: list[Belief] = []
        for pid, what, token, at, *_ in self.log():
            if what == "start":
                begun[pid, token] = float(at)
            elif what == "end":
                found.append(Belief(begun.pop((pid, token)), float(at), int(token)))
        for (pid, token), start in begun.items():
            lease_ends = start + TTL_MS / 1000
            found.append(Belief(start, min(self.died[int(pid)], lease_ends), int(token)))
        return sorted(found)


class LossyNetwork:
    """A proxy before a server, in a thread of its own, that loses replies when told to."""

    def __init__(self, port: int) -> None:
        self._proxy = RespProxy(port)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="lossy network")
        self._lost: list[Hold] = []

    def __enter__(self) -> LossyNetwork:
        self._thread.start()
        self._run(self._proxy.__aenter__())
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._proxy.__aexit__())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def dsn(self) -> str:
        return self._proxy.dsn

    @property
    def lost(self) -> int:
        """How many replies were lost."""
        return sum(hold.count for hold in self._lost)

    def lose_a_reply(self, one: Script) -> None:
        """Of the next call of a script, which the server executes."""

        async def lose() -> Hold:
            return self._proxy.drop_reply(script(one))

        self._lost.append(self._run(lose()))

    def _run(self, work: Coroutine[object, object, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)


@pytest.fixture
def fleet_of(tmp_path: Path) -> Iterator[Callable[..., Fleet]]:
    """Workers on the server at a DSN, all of them warm."""
    fleets: list[Fleet] = []

    def start(dsn: str, workers: int = 4) -> Fleet:
        fleet = Fleet(dsn, tmp_path)
        fleets.append(fleet)
        for _ in range(workers):
            fleet.add()
        deadline = time.monotonic() + 20
        while len({line[0] for line in fleet.log()}) < workers and time.monotonic() < deadline:
            time.sleep(0.05)
        return fleet

    yield start
    for fleet in fleets:
        for worker in tuple(fleet.workers):
            fleet.kill(worker)


def run(fleet: Fleet, faults: list[Callable[[], None]]) -> None:
    """Let the faults happen, one after the other, and the fleet come to rest."""
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        random.choice(faults)()
        time.sleep(random.uniform(0.0, 0.3))
    time.sleep(0.5)
    for worker in tuple(fleet.workers):
        fleet.kill(worker)


def check_writes(fleet: Fleet) -> int:
    """Every write under an overtaken token was refused; how many were."""
    refused = 0
    for _, what, token, _, *more in fleet.log():
        if what == "write":
            accepted, highest = map(int, more)
            assert bool(accepted) is (int(token) >= highest)
            refused += not accepted
    return refused


def check_tokens(beliefs: list[Belief]) -> None:
    """Tokens rise in the order in which their holders began."""
    tokens = [belief.token for belief in beliefs]
    assert tokens == sorted(set(tokens))


def test_believed_holds_never_overlap(fleet_of: Callable[..., Fleet]) -> None:
    """Workers and the server are stopped and killed, replies are lost after their execution; the
    server forgets nothing it answered."""
    options = "--appendonly", "yes", "--appendfsync", "always"
    with ValkeyServer(*options) as server, LossyNetwork(server.port) as network:
        fleet = fleet_of(network.dsn)
        for each in SCRIPTS:
            network.lose_a_reply(each)

        def stop_server() -> None:
            server.pause()
            time.sleep(random.uniform(0.05, 0.7))
            server.resume()

        def kill_server() -> None:
            server.kill()
            server.start()

        run(
            fleet,
            [
                lambda: fleet.stop_one(random.uniform(0.05, 0.8)),
                lambda: fleet.stop_one(0.45),
                fleet.replace_one,
                lambda: network.lose_a_reply(random.choice(SCRIPTS)),
                stop_server,
                kill_server,
            ],
        )
        assert network.lost > 0
    beliefs = fleet.beliefs()
    overlaps = [(one, other) for one, other in itertools.pairwise(beliefs) if one.end > other.start]
    assert overlaps == []
    assert len(beliefs) > 20, "they did get on with it"
    check_tokens(beliefs)
    refused = check_writes(fleet)
    lost = sum(line[1] == "lost" for line in fleet.log())
    print(
        f"{len(beliefs)} holds, {lost} lost, {refused} late writes refused, "
        f"{network.lost} replies lost"
    )


@pytest.mark.parametrize("how", ["careless", "patient"])
def test_stopped_in_the_middle_of_its_work(fleet_of: Callable[..., Fleet], how: str) -> None:
    """Until another one has written: going on, who awaits does nothing more, and the write of who
    does not is refused."""
    with ValkeyServer() as server:
        fleet = fleet_of(server.dsn, 0)
        first = fleet.add(how)
        _, _, earlier, *_ = fleet.wait_for(first, "work")
        os.kill(first.pid, signal.SIGSTOP)
        second = fleet.add()
        _, _, later, _, *written = fleet.wait_for(second, "write")
        assert int(earlier) < int(later)
        assert written == ["1", "0"]
        fleet.kill(second)
        (fleet.directory / "go").touch()
        os.kill(first.pid, signal.SIGCONT)
        fleet.wait_for(first, "lost")
    late = [line[4] for line in fleet.log() if line[:3] == [str(first.pid), "write", earlier]]
    assert late == (["0"] if how == "careless" else [])


def test_tokens_rise_though_the_server_forgets(fleet_of: Callable[..., Fleet]) -> None:
    """Killed without a trace of its data, flushed, emptied: two may believe, one can write."""
    with ValkeyServer() as server:
        fleet = fleet_of(server.dsn)

        def forget() -> None:
            server.kill()
            server.start()

        def flush() -> None:
            server.ask("FLUSHALL")

        run(
            fleet,
            [
                forget,
                flush,
                lambda: fleet.stop_one(random.uniform(0.3, 0.6)),
                fleet.replace_one,
            ],
        )
    granted = [int(line[2]) for line in fleet.log() if line[1] == "start"]
    assert len(granted) == len(set(granted)), "no token was given twice"
    assert len(granted) > 20, "they did get on with it"
    check_writes(fleet)
    writes = [line[2:] for line in fleet.log() if line[1] == "write"]
    # By token, since a process that is stopped before it notes its write is late in the log.
    accepted = sorted((int(token), int(seen)) for token, _, took, seen in writes if took == "1")
    for (earlier, _), (_, seen) in itertools.pairwise(accepted):
        assert seen >= earlier, "each found those before it in the file"
