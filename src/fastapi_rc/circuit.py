"""The circuit that makes calls free while Redis is away.

The first call that Redis does not answer, or a refused connection, opens it: from then on calls
fail at once with :class:`~fastapi_rc.errors.CacheUnavailable`, and a thread asks the server, at
once and then in growing pauses, until it answers. So no request ever pays for finding out; and
a false alarm (one cut connection, one slow command) lasts as long as one PING.

The pattern is Nygard's circuit breaker (Release It!, 2007) with a probe of its own in place
of the half-open state (which the driver's has, where one call in a while pays for looking).
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

from fastapi_rc.errors import CacheUnavailable
from forze.errors import WriteOutcome

_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 1.0
_UNATTENDED_SECONDS = 1.0
_ASKING: ContextVar[bool] = ContextVar("forze_rc_asking", default=False)
_logger = logging.getLogger("fastapi_rc")


class Circuit:
    """Whether a server is believed to answer; the guard of every connection to it.

    ``probe`` asks the server, blocking, and raises where it gets no answer. Without one the
    circuit closes after a second, unasked. Safe to use from several threads and event loops.
    """

    def __init__(
        self,
        *,
        where: str = "Redis",
        probe: Callable[[], Any] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._where = where
        self._probe = probe
        self._clock = clock
        self._opened_at: float | None = None
        self._reason: BaseException | None = None
        self._prober: threading.Thread | None = None
        self._ended = threading.Event()

    @property
    def closed(self) -> bool:
        """Whether calls are let through."""
        since = self._opened_at
        if since is None:
            return True
        if self._probe is None:
            return self._clock() - since >= _UNATTENDED_SECONDS
        self._attend()  # a fork takes the circuit along, and not the thread
        return False

    def admit(self) -> None:
        """Return where a call may be made; raises :class:`CacheUnavailable`."""
        if self._opened_at is None or _ASKING.get() or self.closed:
            return
        raise self.unavailable(
            f"it is away ({self._reason}), so the call was not made; the next ones are let "
            "through as soon as it answers a PING"
        )

    def unavailable(self, error: object, *, outcome: WriteOutcome = "none") -> CacheUnavailable:
        """What a caller gets for ``error``."""
        return CacheUnavailable(f"Redis at {self._where}: {error}", outcome=outcome)

    def succeeded(self) -> None:
        """The server answered: close."""
        since = self._opened_at
        if since is None:
            return
        self._opened_at = None
        _logger.info("Redis at %s answers again after %.1f s", self._where, self._clock() - since)

    def failed(self, error: BaseException) -> None:
        """A connection could not be made, broke, or stayed silent: open, and begin to ask."""
        if isinstance(error, CacheUnavailable) or "max number of clients" in str(error):
            return
        if self._ended.is_set():  # its connections are being closed
            return
        self._reason = error
        if self._opened_at is None:
            self._opened_at = self._clock()
            _logger.warning("Redis at %s is away, calls fail at once: %s", self._where, error)
        elif self._probe is None:
            self._opened_at = self._clock()
        self._attend()

    def end(self) -> None:
        """Ask no longer; what is under way ends by its own timeout."""
        self._ended.set()

    @staticmethod
    @contextlib.contextmanager
    def asking() -> Iterator[None]:
        """Within the block this task's calls are let through, whatever is believed."""
        token = _ASKING.set(True)
        try:
            yield
        finally:
            _ASKING.reset(token)

    def _attend(self) -> None:
        prober = self._prober
        if self._probe is None or self._ended.is_set() or (prober and prober.is_alive()):
            return
        self._prober = threading.Thread(target=self._ask, name="fastapi_rc probe", daemon=True)
        self._prober.start()

    def _ask(self) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while self._opened_at is not None and self._probe is not None:
            try:
                self._probe()
            except Exception as error:
                self._reason = error
            else:
                return self.succeeded()
            if self._ended.wait(pause):
                return None
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
        return None
