"""Workers of the bench: what they answer, and that they end, whatever becomes of them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import bench.peers
import pytest
from bench.peers import Peers, Worker, WorkerFailed
from bench.report import Report

READ = {"what": "process", "callers": 2, "seconds": 0.01}


class Recorder(Report):
    """Remembers what is missing."""

    def __init__(self) -> None:
        super().__init__({})
        self.lacks: dict[str, str] = {}

    def missing(self, who: str, why: str) -> None:
        self.lacks[who] = why


@pytest.fixture
def report() -> Recorder:
    return Recorder()


@pytest.fixture
def peers(report: Recorder) -> Peers:
    return Peers(report, [UUID(int=1), UUID(int=2)], ["theine"])


@pytest.fixture
def worker(peers: Peers) -> Iterator[Worker]:
    with peers.worker("async dict") as worker:
        assert worker is not None
        yield worker
    assert _gone(worker)


def _gone(worker: Worker) -> bool:
    try:
        os.kill(worker.pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_a_subject_works_when_asked(worker: Worker) -> None:
    assert worker.ask("read", **READ)["reads"] >= 16


def test_what_a_subject_cannot_do_is_said_and_it_goes_on(worker: Worker) -> None:
    with pytest.raises(WorkerFailed, match=r"async dict: .*no 'redis' here, but process"):
        worker.ask("read", **{**READ, "what": "redis"})
    assert worker.ask("read", **READ)["us"] > 0


def test_a_worker_that_dies_is_an_error_each_time(worker: Worker) -> None:
    os.kill(worker.pid, signal.SIGKILL)
    for _ in range(2):
        with pytest.raises(WorkerFailed, match=r"async dict.* ended"):
            worker.ask("read", **READ)


def test_a_worker_that_hangs_is_killed(worker: Worker) -> None:
    worker.tell("read", **{**READ, "seconds": 60})
    with pytest.raises(WorkerFailed, match="ended with status -9"):
        worker.answer(patience=0.05)


def test_an_interrupt_leaves_no_process(peers: Peers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.peers, "_HURRY_SECONDS", 0.05)
    seen = []
    with pytest.raises(KeyboardInterrupt), peers.worker("async dict") as worker:
        assert worker is not None
        seen.append(worker)
        worker.tell("read", **{**READ, "seconds": 60})
        raise KeyboardInterrupt
    assert _gone(seen[0])


def test_a_subject_that_cannot_be_opened_is_reported(peers: Peers, report: Recorder) -> None:
    with peers.worker("async dict", subject="no_such_subject") as worker:
        assert worker is None
    assert "no_such_subject.py" in report.lacks["async dict (no_such_subject)"]


def test_an_environment_that_cannot_be_made_is_reported(
    peers: Peers, report: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.peers, "ENVIRONMENTS", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with peers.worker("theine") as worker:
        assert worker is None
    assert report.lacks["theine"].startswith("uv cannot be run")


def test_the_reason_that_uv_gives_is_what_it_says_after_its_warnings() -> None:
    assert bench.peers._reason(
        "warning: Failed to inspect an interpreter\n  cause: exit status 127\n\n"
        "error: Request failed after 3 retries\n  Caused by: dns error\n"
    ) == ("error: Request failed after 3 retries Caused by: dns error")
    assert bench.peers._reason(
        "  × No solution found when resolving dependencies:\n  ╰─▶ Because theine was not found"
    ) == ("× No solution found when resolving dependencies: Because theine was not found")
