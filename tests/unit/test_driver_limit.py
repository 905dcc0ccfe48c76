"""Who gets a connection, and whose goes for it: the bookkeeping of one bound over several pools."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from redis import exceptions as driver

from forze.errors import BackendTimeout, ConfigurationError
from forze_redis.driver import ConnectionLimit, DriverOptions, PoolTimeout
from forze_redis.driver import limit as limits
from forze_redis.driver.limit import Bay, Turn
from forze_redis.driver.parting import Twin


class Quay(Bay):
    """A bay without sockets, whose event loop may be over."""

    def __init__(self, limit: ConnectionLimit) -> None:
        super().__init__(limit)
        self.closed: list[Any] = []
        self.loop_closed = False
        limit.enter(self)

    @property
    def dead(self) -> bool:
        return self.loop_closed

    def close(self, connection: Any) -> Twin:
        self.closed.append(connection)
        return None

    def open(self, connection: str) -> str:
        """Take room for ``connection``, and have it in use."""
        turn = self.limit.take(self)
        assert turn is not None
        assert turn.connection is None
        self.in_use.add(connection)
        return connection


class Waiter:
    """Somebody in the line of ``bay``."""

    def __init__(self, bay: Quay) -> None:
        self.woken = 0
        turn = bay.limit.take(bay, self._wake)
        assert turn is not None
        self.turn: Turn = turn

    def _wake(self) -> None:
        self.woken += 1


def test_an_idle_connection_is_used_again_the_latest_first() -> None:
    quay = Quay(ConnectionLimit(2))
    for each in (quay.open("a"), quay.open("b")):
        assert quay.limit.hand_back(quay, each, usable=True)
    turn = quay.limit.take(quay)
    assert turn is not None
    assert (turn.connection, quay.limit.held) == ("b", 2)


def test_beyond_the_bound_one_waits_and_gets_the_next_that_comes_back() -> None:
    quay = Quay(ConnectionLimit(1))
    quay.open("a")
    assert quay.limit.take(quay) is None
    first, second = Waiter(quay), Waiter(quay)
    assert not first.turn.granted
    assert quay.limit.hand_back(quay, "a", usable=True)
    assert (first.woken, first.turn.connection, second.woken) == (1, "a", 0)


def test_a_broken_connection_leaves_its_room_to_the_next() -> None:
    quay = Quay(ConnectionLimit(1))
    quay.open("a")
    waiter = Waiter(quay)
    assert not quay.limit.hand_back(quay, "a", usable=False)
    assert not waiter.turn.granted
    quay.limit.freed(quay)
    assert (waiter.woken, waiter.turn.connection, quay.limit.held) == (1, None, 1)


def test_an_idle_connection_of_another_bay_makes_room() -> None:
    limit = ConnectionLimit(2)
    one, other = Quay(limit), Quay(limit)
    for each in (one.open("a"), one.open("b")):
        limit.hand_back(one, each, usable=True)
    turn = limit.take(other)
    assert turn is not None
    assert turn.parted == (one, "a")  # the one that was idle for longer
    assert (one.held, other.held) == (1, 1)


def test_who_waits_elsewhere_gets_the_room_of_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_PATIENCE_SECONDS", 0.0)
    limit = ConnectionLimit(1)
    one, other = Quay(limit), Quay(limit)
    one.open("a")
    elsewhere, here = Waiter(other), Waiter(one)
    assert not limit.hand_back(one, "a", usable=True)
    limit.freed(one)
    assert (elsewhere.woken, elsewhere.turn.connection, here.woken) == (1, None, 0)
    assert (one.held, other.held) == (0, 1)


def test_for_a_moment_those_of_the_same_bay_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_PATIENCE_SECONDS", 60.0)
    limit = ConnectionLimit(1)
    one, other = Quay(limit), Quay(limit)
    one.open("a")
    elsewhere, here = Waiter(other), Waiter(one)
    assert limit.hand_back(one, "a", usable=True)
    assert (here.turn.connection, elsewhere.woken) == ("a", 0)


def test_who_leaves_the_line_is_not_served() -> None:
    quay = Quay(ConnectionLimit(1))
    quay.open("a")
    gone, waiting = Waiter(quay), Waiter(quay)
    assert quay.limit.leave(gone.turn)
    quay.limit.hand_back(quay, "a", usable=True)
    assert (gone.woken, waiting.turn.connection) == (0, "a")


def test_who_leaves_too_late_hands_back_what_was_granted() -> None:
    quay = Quay(ConnectionLimit(1))
    quay.open("a")
    late, waiting = Waiter(quay), Waiter(quay)
    quay.limit.hand_back(quay, "a", usable=True)
    assert not quay.limit.leave(late.turn)
    assert late.turn.give_up() is None
    assert waiting.turn.connection == "a"


def test_an_event_loop_that_was_closed_leaves_its_room() -> None:
    limit = ConnectionLimit(2)
    over, other = Quay(limit), Quay(limit)
    over.open("a"), over.open("b")
    limit.hand_back(over, "a", usable=True)
    over.loop_closed = True
    turn = limit.take(other)
    assert turn is not None
    assert (turn.parted, over.closed, limit.held) == (None, ["a", "b"], 1)
    assert not limit.hand_back(over, "b", usable=True)
    limit.freed(over)
    assert limit.held == 1  # it was counted out already


def test_a_waiter_whose_loop_was_closed_is_passed_over() -> None:
    quay = Quay(ConnectionLimit(1))
    quay.open("a")

    def closed() -> None:
        raise RuntimeError("Event loop is closed")

    assert quay.limit.take(quay, closed) is not None
    waiting = Waiter(quay)
    assert quay.limit.hand_back(quay, "a", usable=True)
    assert waiting.turn.connection == "a"


def test_what_is_withdrawn_in_use_is_closed_when_it_comes_back() -> None:
    quay = Quay(ConnectionLimit(2))
    quay.open("idle"), quay.open("busy")
    quay.limit.hand_back(quay, "idle", usable=True)
    quay.leave(in_use=False).at_once()
    assert (quay.closed, quay.limit.held) == (["idle"], 1)
    assert not quay.limit.hand_back(quay, "busy", usable=True)


def test_a_pool_timeout_is_an_error_of_both_families() -> None:
    error = PoolTimeout(5, 0.5)
    assert isinstance(error, driver.ConnectionError)
    assert isinstance(error, BackendTimeout)
    assert (error.outcome, "all 5 connections" in str(error)) == ("none", True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_connections", 0),
        ("socket_timeout", 0),
        ("pool_timeout", float("inf")),
        ("connect_timeout", float("nan")),
        ("health_check_interval", -1),
    ],
)
def test_options_refuse_nonsense(name: str, value: float) -> None:
    given: dict[str, Any] = {
        "max_connections": 1,
        "socket_timeout": 1,
        "connect_timeout": 1,
        "pool_timeout": 1,
        name: value,
    }
    with pytest.raises(ConfigurationError, match=name):
        DriverOptions(**given)
    with pytest.raises(ConfigurationError, match="at least 1"):
        ConnectionLimit(0)


async def test_a_bay_ends_with_the_pools_event_loop() -> None:
    """What runs at the end of ``asyncio.run`` runs here by hand."""
    from forze_redis.driver.bays import LoopBay

    limit = ConnectionLimit(1)

    async def elsewhere() -> LoopBay:
        bay = LoopBay(limit)
        limit.enter(bay)
        assert limit.take(bay) is not None
        return bay

    bay = await asyncio.to_thread(asyncio.run, elsewhere())
    assert (bay.ended, limit.held) == (True, 0)
