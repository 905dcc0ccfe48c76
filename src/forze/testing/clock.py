"""A clock that only moves when told to, for tests of what takes its time as an argument."""

from __future__ import annotations

from datetime import timedelta

from forze.errors import ValidationError

_MICROSECOND = timedelta(microseconds=1)


class ManualClock:
    """A monotonic clock a test moves. Called, it answers seconds like ``time.monotonic``."""

    def __init__(self, start: timedelta = timedelta(seconds=1_000)) -> None:
        self._microseconds = start // _MICROSECOND

    def __call__(self) -> float:
        """Seconds since an arbitrary point."""
        return self._microseconds / 1_000_000

    @property
    def milliseconds(self) -> int:
        """Whole milliseconds since the same point."""
        return self._microseconds // 1_000

    def advance(self, by: timedelta) -> None:
        """Let ``by`` pass at once; a monotonic clock never goes back."""
        if by < timedelta(0):
            raise ValidationError(
                f"a monotonic clock cannot go back by {-by}; advance it by zero or more", field="by"
            )
        self._microseconds += by // _MICROSECOND
