"""The circuit, the error, and what each command is allowed."""

from __future__ import annotations

import asyncio
import logging
import pickle
import threading
from datetime import timedelta
from typing import Any

import pytest
from fastapi import HTTPException
from redis import exceptions as driver

from fastapi_rc.budget import allowance
from fastapi_rc.circuit import Circuit
from fastapi_rc.errors import CacheUnavailable
from forze.errors import BackendUnavailable
from forze.testing.clock import ManualClock


class Server:
    """Answers a probe when it is told to; each probe waits for ``step``."""

    def __init__(self) -> None:
        self.up = False
        self.probes = 0
        self.probed = threading.Event()

    def probe(self) -> None:
        self.probes += 1
        self.probed.set()
        if not self.up:
            raise ConnectionError("refused")


def until_closed(circuit: Circuit) -> bool:
    prober = circuit._prober
    assert prober is not None
    prober.join(20)
    return not prober.is_alive() and circuit.closed


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def circuit(server: Server) -> Any:
    circuit = Circuit(where="here:1", probe=server.probe)
    yield circuit
    circuit.end()


def test_the_first_failure_opens_it_and_the_server_is_asked_at_once(
    circuit: Circuit, server: Server
) -> None:
    circuit.admit()
    circuit.failed(driver.TimeoutError("no answer"))
    assert not circuit.closed
    with pytest.raises(CacheUnavailable, match=r"here:1: it is away \((no answer|refused)\)"):
        circuit.admit()
    assert server.probed.wait(20)
    server.up = True
    assert until_closed(circuit)
    circuit.admit()


def test_a_false_alarm_ends_with_the_first_probe(circuit: Circuit, server: Server) -> None:
    server.up = True
    circuit.failed(driver.ConnectionError("cut"))
    assert until_closed(circuit)
    assert server.probes == 1


def test_any_answer_closes_it(circuit: Circuit) -> None:
    circuit.failed(driver.ConnectionError("cut"))
    circuit.succeeded()
    assert circuit.closed


def test_who_asks_is_let_through(circuit: Circuit) -> None:
    circuit.failed(driver.ConnectionError("cut"))
    with circuit.asking():
        circuit.admit()
    with pytest.raises(CacheUnavailable):
        circuit.admit()


def test_another_task_is_not_let_through_with_who_asks(circuit: Circuit) -> None:
    circuit.failed(driver.ConnectionError("cut"))

    async def other() -> None:
        circuit.admit()

    async def both() -> None:
        task = asyncio.create_task(other())
        with circuit.asking():
            await asyncio.wait([task])
        await task

    with pytest.raises(CacheUnavailable):
        asyncio.run(both())


def test_a_full_server_is_not_away(circuit: Circuit) -> None:
    circuit.failed(driver.ConnectionError("max number of clients reached"))
    assert circuit.closed


def test_its_own_refusals_do_not_count(circuit: Circuit) -> None:
    circuit.failed(CacheUnavailable("known"))
    assert circuit.closed


def test_ended_it_asks_no_more(circuit: Circuit, server: Server) -> None:
    circuit.failed(driver.ConnectionError("cut"))
    prober = circuit._prober
    circuit.end()
    assert prober is not None
    prober.join(20)
    assert not prober.is_alive()
    asked = server.probes
    assert not circuit.closed
    assert server.probes == asked
    late = Circuit(probe=server.probe)
    late.end()
    late.failed(driver.ConnectionError("closed by its owner"))
    assert late.closed


def test_a_thread_that_is_gone_is_replaced(circuit: Circuit, server: Server) -> None:
    """As in a forked child, which has the circuit and not the thread."""
    circuit._opened_at = 0.0
    server.up = True
    assert not circuit.closed
    assert until_closed(circuit)


def test_without_a_probe_it_closes_after_a_second() -> None:
    clock = ManualClock()
    circuit = Circuit(clock=clock)
    closed = []
    for seconds in (0, 0.9):
        clock.advance(timedelta(seconds=seconds))
        circuit.failed(driver.ConnectionError("cut"))
        closed.append(circuit.closed)
    for seconds in (0.9, 0.2):
        clock.advance(timedelta(seconds=seconds))
        closed.append(circuit.closed)
    assert closed == [False, False, False, True]
    circuit.admit()


def test_each_transition_is_logged_once(
    circuit: Circuit, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="fastapi_rc"):
        for _ in range(5):
            circuit.failed(driver.ConnectionError("cut"))
        server.up = True
        assert until_closed(circuit)
        circuit.succeeded()
    said = [each.getMessage() for each in caplog.records]
    assert len(said) == 2
    assert "here:1 is away" in said[0]
    assert "answers again" in said[1]


def test_the_error_is_what_each_library_catches() -> None:
    error = CacheUnavailable("Redis at here:1: cut", outcome="unknown")
    assert isinstance(error, BackendUnavailable)
    assert isinstance(error, driver.ConnectionError)
    assert isinstance(error, HTTPException)
    assert str(error) == "Redis at here:1: cut"
    assert (error.status_code, error.headers) == (503, {"Retry-After": "1"})
    assert "here" not in error.detail
    for copy in (pickle.loads(pickle.dumps(error)), error.again()):
        assert (str(copy), copy.outcome, copy.status_code) == (str(error), "unknown", 503)


@pytest.mark.parametrize(
    ("command", "seconds"),
    [
        ("GET k", 1.0),
        ("BLPOP k 5", 6.0),
        ("blpop k 0.5", 1.5),
        ("BLPOP k 0", None),
        ("BRPOPLPUSH a b 2", 3.0),
        ("BLMOVE a b LEFT RIGHT 2", 3.0),
        ("BLMPOP 2 1 k LEFT", 3.0),
        ("BZMPOP 0 1 k MIN", None),
        ("BZPOPMIN k 2", 3.0),
        ("WAIT 1 500", 1.5),
        ("WAITAOF 1 1 500", 1.5),
        ("XREAD BLOCK 500 STREAMS s $", 1.5),
        ("XREAD COUNT 1 BLOCK 0 STREAMS s $", None),
        ("XREADGROUP GROUP g c STREAMS BLOCK 7", 1.0),
        ("BLPOP k soon", 1.0),
        ("XREAD BLOCK", 1.0),
    ],
)
def test_what_a_command_is_allowed(command: str, seconds: float | None) -> None:
    assert allowance(tuple(command.split()), 1.0) == seconds


def test_words_may_be_bytes() -> None:
    assert allowance(("XREAD", b"BLOCK", 500, b"STREAMS", b"s", b"$"), 1.0) == 1.5
