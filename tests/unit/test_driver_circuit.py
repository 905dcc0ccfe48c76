"""The circuit: two failures in a row open it, one call at a time looks, an answer closes it."""

from __future__ import annotations

import pytest
from redis import exceptions as driver

from forze.errors import BackendUnavailable
from forze_redis.driver import Circuit
from forze_redis.driver.guard import is_outage


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def circuit(clock: Clock) -> Circuit:
    return Circuit("h:1", pause_seconds=1.0, probe_seconds=3.0, clock=clock)


FAILURE = driver.TimeoutError("no answer")


def let_through(circuit: Circuit) -> bool:
    try:
        circuit.admit()
    except BackendUnavailable:
        return False
    return True


def test_one_failure_is_none(circuit: Circuit) -> None:
    circuit.failed(FAILURE)
    assert let_through(circuit)
    circuit.succeeded()
    circuit.failed(FAILURE)
    assert let_through(circuit)


def test_two_in_a_row_open_it_and_the_message_says_why(circuit: Circuit) -> None:
    circuit.failed(FAILURE)
    circuit.failed(FAILURE)
    with pytest.raises(BackendUnavailable, match=r"h:1 is away.*no answer") as refused:
        circuit.admit()
    assert isinstance(refused.value, driver.ConnectionError)
    assert refused.value.outcome == "none"


def test_one_at_a_time_looks_after_a_pause(circuit: Circuit, clock: Clock) -> None:
    circuit.failed(FAILURE)
    circuit.failed(FAILURE)
    clock.now += 0.99
    assert not let_through(circuit)
    clock.now += 0.02
    assert [let_through(circuit) for _ in range(3)] == [True, False, False]
    clock.now += 1.5  # the one that looks is still at it
    assert not let_through(circuit)
    circuit.failed(FAILURE)
    clock.now += 0.5
    assert not let_through(circuit)
    clock.now += 0.6
    assert let_through(circuit)
    circuit.succeeded()
    assert [let_through(circuit) for _ in range(3)] == [True, True, True]


def test_who_looks_and_is_not_heard_of_is_not_waited_for(circuit: Circuit, clock: Clock) -> None:
    circuit.failed(FAILURE)
    circuit.failed(FAILURE)
    clock.now += 1.0
    assert let_through(circuit)
    clock.now += 3.0
    assert let_through(circuit)


def test_the_error_of_a_refusal_is_the_owners(clock: Clock) -> None:
    circuit = Circuit("h:1", clock=clock, refusal=LookupError)
    circuit.failed(FAILURE)
    circuit.failed(FAILURE)
    with pytest.raises(LookupError):
        circuit.admit()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (driver.ConnectionError("x"), True),
        (driver.TimeoutError("x"), True),
        (OSError("x"), True),
        (driver.AuthenticationError("x"), False),
        (driver.BusyLoadingError("x"), False),
        (driver.MaxConnectionsError("x"), False),
        (driver.ResponseError("x"), False),
        (ValueError("x"), False),
    ],
)
def test_an_answer_is_no_outage(error: Exception, expected: bool) -> None:
    assert is_outage(error) is expected
