"""Asserts that a call is refused with an error a user can act on."""

from __future__ import annotations

from types import TracebackType
from typing import Generic, TypeVar

E = TypeVar("E", bound=BaseException)


class refused(Generic[E]):
    """``with refused(SomeError, "a word of it"):`` the block must raise it, saying these words."""

    error: E

    def __init__(self, kind: type[E], *words: str) -> None:
        self._kind = kind
        self._words = words

    def __enter__(self) -> refused[E]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        assert error is not None, f"nothing was raised, expected {self._kind.__name__}"
        if not isinstance(error, self._kind):
            return False
        for word in self._words:
            assert word in str(error), f"{error!s} does not say {word!r}"
        self.error = error
        return True
