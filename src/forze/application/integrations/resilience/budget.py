"""A retry budget: how many retries the calls of a policy have earned together.

Retries help where failures are rare, and multiply the load where everything fails. So each
call earns a part of a retry, and each retry costs a whole one. The reserve at the start is for
processes that make few calls.
"""

from __future__ import annotations


class RetryBudget:
    """A bucket of retries that calls fill. ``ratio`` retries per call, at most ``reserve``."""

    __slots__ = ("_ratio", "_reserve", "balance")

    def __init__(self, ratio: float, reserve: int) -> None:
        self._ratio = ratio
        self._reserve = float(reserve)
        self.balance = self._reserve

    def earn(self) -> None:
        """A call is made."""
        self.balance = min(self._reserve, self.balance + self._ratio)

    def spend(self) -> bool:
        """Whether a retry may be made; it is paid for then."""
        # Five calls at a fifth of a retry each are to pay for one, whatever floats make of it.
        if self.balance < 1 - 1e-9:
            return False
        self.balance = max(0.0, self.balance - 1)
        return True
