"""Who says whether the server is worth asking, and the circuit that does so by default.

A guard is asked before a connection is taken out of the pool and told of what happens on it:
connecting, sending, each answer. So whatever is done with a redis-py client (pipelines,
``scan_iter``, ``pubsub``) goes past it.

:class:`Circuit` is the state machine of :mod:`forze_redis.wire.availability` with a clock: two
failures in a row open it, then one call a second is let through to look, and the first answer
of any call closes it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic
from typing import Protocol

from redis import exceptions as driver

from forze.errors import BackendUnavailable
from forze_redis.wire.availability import Availability
from forze_redis.wire.replies import BACKEND

_PAUSE_SECONDS = 1.0
_PROBE_SECONDS = 2.0
_ANSWERS = (
    driver.AuthenticationError,
    driver.AuthorizationError,
    driver.BusyLoadingError,
    driver.MaxConnectionsError,
)
"""Connection errors of redis-py that are none: the server answered, or was not asked."""


class Guard(Protocol):
    """Asked before a client talks to the server, and told how it went; from any thread."""

    def admit(self) -> None:
        """Raise where the server is not to be asked now."""

    def succeeded(self) -> None:
        """The server answered."""

    def failed(self, error: BaseException) -> None:
        """It could not be reached, or did not answer in time."""


class Refused(BackendUnavailable, driver.ConnectionError):
    """The circuit is open: the server was away a moment ago and was not asked.

    Also a ``redis.ConnectionError``, for those who catch the errors of redis-py.
    """

    def __init__(self, message: str) -> None:
        driver.ConnectionError.__init__(self, message)
        BackendUnavailable.__init__(self, message, backend=BACKEND)


class Circuit:
    """A :class:`Guard` that spares the callers a server which does not answer.

    Open, calls fail at once with what ``refusal`` makes of the message; after ``pause_seconds``
    one of them is let through to look, and again, one at a time, until the server answers. Who
    looks and is not heard of within ``probe_seconds`` is not waited for. ``where`` names the
    server in messages. Costs no round trip and no task.
    """

    def __init__(
        self,
        where: str,
        *,
        pause_seconds: float = _PAUSE_SECONDS,
        probe_seconds: float = _PROBE_SECONDS,
        refusal: Callable[[str], Exception] = Refused,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.availability = Availability()
        self._where = where
        self._pause = pause_seconds
        self._probe = probe_seconds
        self._refusal = refusal
        self._clock = clock
        self._next_at = 0.0
        self._reason = ""
        self._lock = threading.Lock()

    @property
    def open(self) -> bool:
        """Whether calls fail at once at present."""
        return self.availability.away

    def admit(self) -> None:
        """Return, or raise while the circuit is open and somebody else looks, or it is too soon."""
        if not self.availability.away:
            return
        with self._lock:
            now = self._clock()
            if now >= self._next_at:
                self._next_at = now + self._probe
                return
        raise self._refusal(
            f"Redis at {self._where} is away and was not asked ({self._reason}); it is looked for "
            f"every {self._pause:g} s, and calls go through again when it answers"
        )

    def succeeded(self) -> None:
        """Close."""
        if not self.availability.away:
            self.availability.answered()
            return
        with self._lock:
            told = self.availability.restored()
        for callback in told:
            callback()

    def failed(self, error: BaseException) -> None:
        """Count, open at the second in a row; while open, pause anew."""
        with self._lock:
            self.availability.unanswered(1)
            self._reason = str(error) or type(error).__name__
            self._next_at = self._clock() + self._pause


class NoGuard:
    """Lets everything through."""

    def admit(self) -> None:
        """Return."""

    def succeeded(self) -> None:
        """Ignore."""

    def failed(self, error: BaseException) -> None:
        """Ignore."""


def is_outage(error: BaseException) -> bool:
    """Whether ``error`` means that the server is out of reach, or too slow."""
    if isinstance(error, _ANSWERS):
        return False
    return isinstance(error, (driver.ConnectionError, driver.TimeoutError, OSError))
