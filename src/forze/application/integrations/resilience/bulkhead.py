"""A bulkhead: so many at once, so many in line, served in the order they came."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque


class Bulkhead:
    """Places for ``places`` calls at once, and ``queue`` that wait."""

    __slots__ = ("_line", "_places", "_queue", "taken")

    def __init__(self, places: int, queue: int) -> None:
        self._places = places
        self._queue = queue
        self.taken = 0
        self._line: deque[asyncio.Future[None]] = deque()

    @property
    def waiting(self) -> int:
        """How many stand in line."""
        return len(self._line)

    @property
    def idle(self) -> bool:
        """Whether nobody is in it and nobody waits."""
        return not self.taken

    async def enter(self, within: float | None) -> bool:
        """Take a place, waiting for at most ``within`` seconds (None: as long as it takes);
        False where there is none. Cancelled, it takes none."""
        if self.taken < self._places:
            self.taken += 1
            return True
        if len(self._line) >= self._queue or (within is not None and within <= 0):
            return False
        turn = asyncio.get_running_loop().create_future()
        self._line.append(turn)
        try:
            async with asyncio.timeout(within):
                await turn
        except TimeoutError:
            return self._left(turn)
        except BaseException:
            if self._left(turn):
                self.leave()
            raise
        return True

    def leave(self) -> None:
        """Give the place to the first in line, or back."""
        while self._line:
            turn = self._line.popleft()
            if not turn.done():  # done: cancelled, and not out of the line yet
                turn.set_result(None)
                return
        self.taken -= 1

    def _left(self, turn: asyncio.Future[None]) -> bool:
        """Out of the line; True where the place had just been given."""
        if turn.done() and not turn.cancelled():
            return True
        with contextlib.suppress(ValueError):
            self._line.remove(turn)
        return False
