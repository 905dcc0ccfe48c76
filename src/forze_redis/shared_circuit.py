"""One circuit of the fleet as this process knows it, and what it has not told yet. Pure.

Closed and open are known here without asking: the state is told with each answer and at each
transition. What was heard last may be taken back only by an answer to a question that was put
after it: a message overtakes answers that are on their way.
"""

from __future__ import annotations

import time
from datetime import timedelta
from math import ceil
from typing import Final, NamedTuple

from forze.application.contracts.resilience import (
    Admission,
    BreakerState,
    BreakerView,
    CircuitBreakerStrategy,
    PolicyKey,
    seconds_of,
)
from forze.application.integrations.resilience.breaker import Tally
from forze.application.integrations.resilience.transitions import log_transition
from forze_redis.reach import Call

MOST_OUTCOMES: Final = 32
"""So many outcomes are told at once."""

_ASK_AGAIN_SECONDS: Final = 0.1
"""While half open: for so long at most nobody asks for a probe that was refused. A place that
becomes free is no transition, and not told."""

_MICROSECONDS: Final = 1_000_000
_FOREVER_MS: Final = 10**12


class Word(NamedTuple):
    """What the server said of a circuit."""

    state: BreakerState
    generation: int
    wait: float
    """Seconds until to ask again."""
    calls: int = 0
    failures: int = 0

    @classmethod
    def of_reply(cls, reply: list[bytes | int]) -> tuple[bool, Word]:
        """Whether it admits, and the rest of a reply."""
        admitted, state, generation, wait, calls, failures = reply
        assert isinstance(state, bytes)
        word = cls(
            BreakerState(state.decode()),
            int(generation),
            int(wait) / _MICROSECONDS,
            int(calls),
            int(failures),
        )
        return bool(admitted), word

    @classmethod
    def of_message(cls, message: bytes) -> tuple[str, Word]:
        """Which circuit has moved, and where to."""
        name, state, generation, wait = message.decode().split(" ")
        return name, cls(BreakerState(state), int(generation), int(wait) / _MICROSECONDS)


_NOTHING_YET: Final = Word(BreakerState.CLOSED, 0, 0.0)


class SharedCircuit:
    """What is known of one circuit. Times are seconds of ``time.monotonic``."""

    __slots__ = (
        "_admitted", "_own_break", "_until", "channel", "heard_at", "in_touch", "key", "messages",
        "name", "parted_at", "pending", "since", "strategy", "word",
    )  # fmt: skip

    def __init__(
        self,
        key: PolicyKey,
        name: str,
        channel: str,
        strategy: CircuitBreakerStrategy,
        now: float = 0.0,
    ) -> None:
        self.key = key
        self.name = name
        self.channel = channel
        self.strategy = strategy
        self.word = _NOTHING_YET
        self.since = time.time()
        self.heard_at = now
        self.messages = 0
        """How many were heard: an answer to an older question may be out of date."""
        self.in_touch = False
        """Whether what is known is the fleet's: it was asked, and nothing was missed since."""
        self.parted_at: int | None = None
        """The generation at which this process went on by itself, None while it did not."""
        self.pending = Tally()
        self._admitted = Admission(True, self.word.state, self.word.generation)
        self._until = 0.0
        self._own_break: tuple[float, int] | None = None

    def call(self, event: str, permit: str = "", *told: int) -> Call:
        """Keys and arguments of the script; ``told`` are a generation and three counts."""
        settings = _settings(self.strategy)
        return (self.name, self.channel), (event, permit, *(told or (0, 0, 0, 0)), *settings)

    def look(self) -> Call:
        """The call that asks where it stands."""
        return self.call("look")

    @property
    def alone(self) -> bool:
        """Whether this process judges by itself."""
        return self.parted_at is not None

    def answer(self, now: float) -> Admission | None:
        """The admission, None where the server has to be asked for it."""
        state, generation = self.word.state, self.word.generation
        if self._own_break is not None:
            until, as_of = self._own_break
            if now < until and generation <= as_of:
                return refusal(BreakerState.OPEN, generation, until - now)
            self._own_break = None
        if state is BreakerState.CLOSED or state is BreakerState.DISABLED:
            return self._admitted
        if state is BreakerState.FORCED_OPEN or now < self._until:
            return refusal(state, generation, self._until - now)
        return None

    def part(self, now: float) -> Admission:
        """Go on alone; what was known last, as an admission."""
        self.parted_at = self.word.generation
        return self.answer(now) or refusal(self.word.state, self.word.generation, 0.0)

    def rejoin(self) -> bool:
        """Go on with the fleet; whether that has not moved meanwhile."""
        parted_at, self.parted_at = self.parted_at, None
        return parted_at is not None and self.word.generation <= parted_at

    def view(self) -> BreakerView:
        """What is known, for people."""
        word, pending = self.word, self.pending
        return BreakerView(
            self.key,
            word.state,
            word.generation,
            since=self.since,
            calls=word.calls + pending.calls,
            failures=word.failures + pending.failures,
            degraded=False,
        )

    def replied(self, word: Word, now: float, asked_after: int) -> bool:
        """Take an answer to a question put after so many messages; whether it was up to date."""
        if word.generation < self.word.generation and self.messages > asked_after:
            return False
        self._take(word, now)
        self.heard_at = now
        return True

    def told(self, word: Word, now: float) -> None:
        """Take a message."""
        self.messages += 1
        if word.generation > self.word.generation:
            self._take(word, now)

    def ask_later(self, wait: float, now: float) -> None:
        """A probe was refused."""
        self._until = now + min(wait, _ASK_AGAIN_SECONDS)

    def ask_now(self) -> None:
        """A place may have become free."""
        if self.word.state is BreakerState.HALF_OPEN:
            self._until = 0.0

    def keep_open(self, wait: float, now: float) -> None:
        """Finish a break of this process's own, unless the fleet has moved since."""
        self._own_break = now + wait, self.word.generation

    def count(self, ok: bool, slow: bool) -> bool:
        """One more outcome; whether it should be told at once: it is bad, or it may be the one
        that opens the circuit, or there are many."""
        self.pending.add(ok, slow)
        strategy, word, pending = self.strategy, self.word, self.pending
        calls = word.calls + pending.calls
        return (
            not ok
            or slow
            or pending.calls >= MOST_OUTCOMES
            or (
                calls >= strategy.min_throughput
                and (word.failures + pending.failures) / calls >= strategy.failure_ratio
            )
        )

    def take_pending(self) -> Tally:
        """The outcomes that were not told yet, which the caller will."""
        pending, self.pending = self.pending, Tally()
        return pending

    def outdated(self, admission: Admission) -> bool:
        """Whether there was a transition since. A server that has forgotten knows of none."""
        return self.word.generation not in (0, admission.generation)

    def idle(self, now: float) -> bool:
        """Whether nothing was heard of it for a window, and the server knows as much of it."""
        window = seconds_of(self.strategy.sampling_window)
        return (
            self.word.state not in (BreakerState.FORCED_OPEN, BreakerState.DISABLED)
            and not self.pending.calls
            and now - self.heard_at > window
            and now >= self._until
        )

    def _take(self, word: Word, now: float) -> None:
        was = self.word
        if word == was:
            word = was  # one of the two is enough
        self.word = word
        if word.state is not BreakerState.HALF_OPEN:
            self._until = now + word.wait
        elif was.state is not word.state:
            self._until = 0.0
        if word.generation != was.generation:
            self.pending = Tally()
            self._admitted = Admission(True, word.state, word.generation)
        if word.state is not was.state:
            self.since = time.time()
            log_transition(self.key, was.state, word.state, word.generation)


def refusal(state: BreakerState, generation: int, wait: float) -> Admission:
    """A call is not let through for so many seconds, or until a hand changes it."""
    if state is BreakerState.FORCED_OPEN:
        return Admission(False, state, generation)
    # Rounded up to the microsecond: who comes back after that must not be early.
    return Admission(False, state, generation, timedelta(seconds=wait) + timedelta.resolution)


def _settings(strategy: CircuitBreakerStrategy) -> tuple[int | float, ...]:
    """What the script has to know of a strategy."""

    def microseconds(value: float) -> int:
        return ceil(value * _MICROSECONDS)

    window, budget = seconds_of(strategy.sampling_window), strategy.half_open_budget_seconds
    remembered = 1000 * (window + 2 * strategy.longest_break_seconds + 2 * budget)
    return (
        microseconds(window),
        strategy.min_throughput,
        strategy.failure_ratio,
        strategy.slow_call_ratio,
        microseconds(seconds_of(strategy.break_duration)),
        microseconds(strategy.longest_break_seconds),
        strategy.half_open_max_calls,
        microseconds(strategy.probe_lease_seconds),
        microseconds(budget),
        min(_FOREVER_MS, ceil(remembered)),
    )
