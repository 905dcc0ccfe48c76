"""Processes that take one lock, stopped and killed among faults of the server.

What each of them believed is compared afterwards: no two at once, tokens in the order of the
grants, and not one write under an overtaken token.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.architecture.tree import ROOT

from forze.testing.servers import ValkeyServer
from forze_redis.dlock import sleepless_clock

TTL_MS = 300
SECONDS = 7.0


class Belief(NamedTuple):
    """From when to when a process believed that it held the lock, under which token."""

    start: float
    end: float
    token: int


class Fleet:
    """Workers, and when each that was killed died."""

    def __init__(self, dsn: str, directory: Path) -> None:
        self._dsn, self._directory = dsn, directory
        self.workers: list[subprocess.Popen[bytes]] = []
        self.died: dict[int, float] = {}

    def add(self) -> None:
        arguments = [self._dsn, str(self._directory), str(TTL_MS)]
        command = [sys.executable, "-m", "tests.faults.lock_worker", *arguments]
        with (self._directory / "errors").open("ab") as errors:
            self.workers.append(subprocess.Popen(command, cwd=ROOT, stderr=errors))

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

    def log(self) -> list[list[str]]:
        with contextlib.suppress(FileNotFoundError):
            return [line.split() for line in (self._directory / "log").read_text().splitlines()]
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


@pytest.fixture
def fleet_of(tmp_path: Path) -> Iterator[Callable[[str], Fleet]]:
    """Four workers on the server at a DSN, all of them warm."""
    fleets: list[Fleet] = []

    def start(dsn: str) -> Fleet:
        fleet = Fleet(dsn, tmp_path)
        fleets.append(fleet)
        for _ in range(4):
            fleet.add()
        deadline = time.monotonic() + 20
        while len({line[0] for line in fleet.log()}) < 4 and time.monotonic() < deadline:
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


def test_believed_holds_never_overlap(fleet_of: Callable[[str], Fleet]) -> None:
    """Workers and the server are stopped and killed; the server forgets nothing it answered."""
    options = "--appendonly", "yes", "--appendfsync", "always"
    with ValkeyServer(*options) as server:
        fleet = fleet_of(server.dsn)

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
                stop_server,
                kill_server,
            ],
        )
    beliefs = fleet.beliefs()
    overlaps = [(one, other) for one, other in itertools.pairwise(beliefs) if one.end > other.start]
    assert overlaps == []
    assert len(beliefs) > 20, "they did get on with it"
    check_tokens(beliefs)
    refused = check_writes(fleet)
    lost = sum(line[1] == "lost" for line in fleet.log())
    print(f"{len(beliefs)} holds, {lost} lost, {refused} late writes refused")


def test_tokens_rise_though_the_server_forgets(fleet_of: Callable[[str], Fleet]) -> None:
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
    accepted = [int(line[2]) for line in fleet.log() if line[1] == "write" and line[4] == "1"]
    assert accepted == sorted(accepted)
