"""Signals, answered by a function of one's own for a while, and put back afterwards."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What asks a program to end: Ctrl-C, ``kill``, a terminal that was closed."""


@contextmanager
def answered_by(answer: Callable[[int], None], signals: Iterable[signal.Signals]) -> Iterator[None]:
    """``signals`` are ``answer``'s for the length of the block; one that is ignored stays so.

    Python hears signals in the main thread only, between any two steps of the program; in
    another thread this changes nothing.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {each: signal.getsignal(each) for each in signals}
    ours = [each for each, handler in before.items() if handler not in (signal.SIG_IGN, None)]
    try:
        for each in ours:
            signal.signal(each, lambda number, _frame: answer(number))
        yield
    finally:
        for each in ours:
            signal.signal(each, before[each])


class Interruptions:
    """Of :data:`ENDING`, the first that came: it ends the program at once, or waits for a check."""

    def __init__(self) -> None:
        self._received: int | None = None
        self._held = False

    def answer(self, number: int) -> None:
        """A signal came."""
        self._received = self._received or number
        if not self._held:
            self.check()

    def hold(self) -> None:
        """From now on signals wait for :meth:`check`, and those after the last are forgotten."""
        self._held = True
        self.check()

    def check(self) -> None:
        """SystemExit, with the shell's exit code for the signal, if one came."""
        if self._received is not None:
            self._held = True  # what is left is cleaning up
            raise SystemExit(128 + self._received)
