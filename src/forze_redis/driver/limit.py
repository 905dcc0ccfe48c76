"""One bound over all connections, whoever holds them: event loops, threads, both at once.

A :class:`Bay` is where the connections of one pool stand that one event loop may use (of a
pool of blocking connections: any thread). Who needs a connection takes an idle one of its own
bay, else room for a new one, else the room of an idle one in another bay, which is parted
with; else it waits in line. Who hands one back serves the line: a waiter of the same bay gets
the connection as it is, one of another bay its room. The head of the line is passed over by
those of the same bay for a moment only, so that nobody starves and two sides that compete do
not reconnect for every call.

Everything here is bookkeeping under a lock, without I/O and without waiting, so it serves
blocking and asynchronous pools alike. A forked child begins with a count of its own.
"""

from __future__ import annotations

import threading
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from redis import exceptions as driver

from forze.errors import BackendTimeout, ConfigurationError
from forze_redis.driver.parting import Parting, Twin, part, socket_of
from forze_redis.wire.replies import BACKEND

_PATIENCE_SECONDS = 0.02


class PoolTimeout(BackendTimeout, driver.MaxConnectionsError):
    """No connection came free in time; nothing was sent.

    Also a ``redis.ConnectionError``, as redis-py's own waiting pools raise.
    """

    def __init__(self, limit: int, waited_seconds: float) -> None:
        message = (
            f"all {limit} connections to Redis were in use for {waited_seconds:g} s; allow more of "
            "them, hold them for less time (pubsub, blocking commands), or wait longer"
        )
        driver.MaxConnectionsError.__init__(self, message)
        BackendTimeout.__init__(self, message, backend=BACKEND)


class Bay(ABC):
    """The connections of one pool that may be used from one place.

    ``held`` counts them, and those about to be opened; ``idle`` has the most recent one last.
    Both belong to the limit and change under its lock. ``in_use`` are those handed out,
    ``leaving`` those among them that are closed when they are handed back. ``ended``, it is
    counted no longer.
    """

    def __init__(self, limit: ConnectionLimit) -> None:
        self.limit = limit
        self.held = 0
        self.idle: list[Any] = []
        self.in_use: set[Any] = set()
        self.leaving: set[Any] = set()
        self.ended = False

    @property
    def dead(self) -> bool:
        """Whether nobody can use its connections any more."""
        return False

    @abstractmethod
    def close(self, connection: Any) -> Twin:
        """Close ``connection``, which nobody uses, from any thread, without waiting."""

    def left(self) -> list[Any]:
        """Every connection there is."""
        return [*self.idle, *self.in_use]

    def leave(self, *, in_use: bool) -> Parting:
        """Close what is idle; what is in use as well, or else once it is handed back."""
        idle = self.limit.withdraw(self)
        twins = [self.close(each) for each in idle]
        if in_use:
            for each in tuple(self.in_use):
                Parting([part(socket_of(each))], _nothing).at_once()

        def settle() -> None:
            for _ in idle:
                self.limit.freed(self)

        return Parting(twins, settle)

    def part_with(self, connection: Any) -> Parting:
        """Close one that was in use, and give its room away when it is gone."""
        return Parting([self.close(connection)], lambda: self.limit.freed(self))


@dataclass(slots=True, eq=False)
class Turn:
    """A place in the line; ``wake`` is called, from any thread, once it is granted.

    Granted, it stands for ``connection``, or for room to open one. ``parted`` has to be gone
    first, and its bay closes it.
    """

    bay: Bay
    wake: Callable[[], None]
    since: float = field(default_factory=monotonic)
    granted: bool = False
    connection: Any = None
    parted: tuple[Bay, Any] | None = None

    def give_up(self) -> Parting | None:
        """Hand back what was granted to somebody who does not want it any more."""
        bay = self.bay
        self.make_room().at_once()
        if self.connection is None:
            bay.limit.freed(bay)
        elif not bay.limit.hand_back(bay, self.connection, usable=True):
            return bay.part_with(self.connection)
        return None

    def make_room(self) -> Parting:
        """Close what has to be gone first."""
        if self.parted is None:
            return Parting((), _nothing)
        (bay, connection), self.parted = self.parted, None
        return Parting([bay.close(connection)], _nothing)


class ConnectionLimit:
    """At most ``n`` connections at once, over every pool that was given this object.

    Of a cluster it bounds the calls under way, and with them the connections to each node.
    """

    def __init__(self, n: int) -> None:
        if n < 1:
            raise ConfigurationError(f"ConnectionLimit: n must be at least 1, not {n!r}", name="n")
        self.n = n
        self.begin_anew()
        _limits.add(self)

    def begin_anew(self) -> None:
        """Count from zero: nothing is held, nobody waits."""
        self._lock = threading.Lock()
        self._bays: list[Bay] = []
        self._line: deque[Turn] = deque()

    @property
    def held(self) -> int:
        """How many connections there are at present, idle ones included."""
        return sum(bay.held for bay in self._bays)

    def enter(self, bay: Bay) -> None:
        """Have ``bay`` counted from now on."""
        with self._lock:
            self._bays.append(bay)
        self.sweep()

    def take(self, bay: Bay, wake: Callable[[], None] | None = None) -> Turn | None:
        """A turn that is granted; else one in the line, None where no ``wake`` was given."""
        self.sweep()
        turn = Turn(bay, wake or _nothing)
        with self._lock:
            if bay.idle:
                turn.connection = bay.idle.pop()
            elif self.held < self.n:
                bay.held += 1
            elif (fullest := max(self._bays, key=lambda each: len(each.idle))).idle:
                turn.parted = fullest, fullest.idle.pop(0)
                fullest.held -= 1
                bay.held += 1
            elif wake is None:
                return None
            else:
                self._line.append(turn)
                return turn
            turn.granted = True
        return turn

    def leave(self, turn: Turn) -> bool:
        """Wait no longer; False where the turn was granted meanwhile and is to be handed back."""
        with self._lock:
            if turn in self._line:
                self._line.remove(turn)
            return not turn.granted

    def hand_back(self, bay: Bay, connection: Any, *, usable: bool) -> bool:
        """Take a connection back; False: close it, then tell :meth:`freed`."""
        with self._lock:
            usable = usable and connection not in bay.leaving and not bay.ended
            bay.in_use.discard(connection)
            bay.leaving.discard(connection)
            while usable and self._line:
                turn = self._next(bay)
                if turn.bay is not bay:
                    return False
                if self._grant(turn, connection):
                    return True
            if usable:
                bay.idle.append(connection)
            return usable

    def freed(self, bay: Bay) -> None:
        """One connection of ``bay`` is gone: its room goes to the head of the line."""
        with self._lock:
            if not bay.ended:
                bay.held -= 1
                self._serve()

    def withdraw(self, bay: Bay) -> list[Any]:
        """Its idle connections, to be closed and reported to :meth:`freed` by the caller.

        Those in use are closed when they are handed back.
        """
        with self._lock:
            bay.leaving |= bay.in_use
            idle, bay.idle = bay.idle, []
            return idle

    def end(self, bay: Bay) -> list[Any]:
        """Count ``bay`` no longer; what connections were left, for the caller to close."""
        with self._lock:
            if bay.ended:
                return []
            bay.ended = True
            self._bays.remove(bay)
            left = bay.left()
            bay.idle, bay.in_use, bay.leaving, bay.held = [], set(), set(), 0
            self._line = deque(turn for turn in self._line if turn.bay is not bay)
            self._serve()
            return left

    def sweep(self) -> None:
        """Clear the bays of event loops that were closed."""
        for bay in [each for each in self._bays if each.dead]:
            for connection in self.end(bay):
                Parting([bay.close(connection)], _nothing).at_once()

    def _serve(self) -> None:
        while self._line and self.held < self.n:
            turn = self._line[0]
            if self._grant(turn, None):
                turn.bay.held += 1

    def _next(self, bay: Bay) -> Turn:
        head = self._line[0]
        if head.bay is not bay and monotonic() - head.since < _PATIENCE_SECONDS:
            return next((turn for turn in self._line if turn.bay is bay), head)
        return head

    def _grant(self, turn: Turn, connection: Any) -> bool:
        """Whether somebody is still there to be woken."""
        self._line.remove(turn)
        turn.granted, turn.connection = True, connection
        try:
            turn.wake()
        except RuntimeError:  # its event loop was closed
            return False
        return True


def _nothing() -> None:
    """Wakes nobody."""


_limits: weakref.WeakSet[ConnectionLimit] = weakref.WeakSet()


def after_fork() -> None:
    """In a child: no connection of the parent counts here."""
    for limit in tuple(_limits):
        limit.begin_anew()
