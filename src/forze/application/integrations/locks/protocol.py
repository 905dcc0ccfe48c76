"""The states of locks and semaphores, and every transition of them. No clock, no I/O.

Times are whole microseconds. What has lapsed by ``now`` is dropped before anything is
decided. The scripts of the Redis backend make the same transitions on a server; a model
test holds them to it.

A token is ``max(last + 1, stamp)``, ``stamp`` the time of day: a hybrid logical clock
(S. Kulkarni et al., "Logical Physical Clocks", OPODIS 2014). It rises with every grant, and
still rises where the last one was forgotten, which a counter would not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from forze.application.integrations.locks.names import READER


class Holding(NamedTuple):
    """Who has the lock alone, under which token, until when."""

    owner: str
    token: int
    until: int


class Answer(NamedTuple):
    """``token`` None: refused, and the lease in the way ends in ``free_in`` (0: none is)."""

    token: int | None
    free_in: int = 0


class Waiters:
    """A line: owners in the order in which they came, each until it counts as gone."""

    def __init__(self) -> None:
        self.until: dict[str, int] = {}

    def renew(self, owner: str, until: int) -> None:
        """Stand in line, or stay in it."""
        self.until[owner] = max(until, self.until.get(owner, 0))

    def leave(self, owner: str) -> bool:
        """Whether it stood there."""
        return self.until.pop(owner, None) is not None

    def prune(self, now: int) -> None:
        """Skip those who count as gone."""
        self.until = _living(self.until, now)

    def ahead_of(self, owner: str) -> list[str]:
        """Everybody who came before; for somebody who does not stand here, everybody."""
        line = list(self.until)
        return line[: line.index(owner)] if owner in self.until else line


class LockState:
    """A lock that is held by one owner alone, or read by any number of others."""

    def __init__(self) -> None:
        self.holding: Holding | None = None
        self.readers: dict[str, int] = {}
        self.last = 0
        self.line = Waiters()

    def acquire(
        self, owner: str, *, shared: bool, now: int, stamp: int, lease: int, wait: int
    ) -> Answer:
        """Have it until ``now + lease``; refused, wait in line until ``now + wait`` (0: do not)."""
        self.prune(now)
        holding = self.holding
        if shared and owner in self.readers:
            self._read(owner, now + lease)
            return Answer(self.last)
        if not shared and holding is not None and holding.owner == owner:
            self.holding = holding._replace(until=max(holding.until, now + lease))
            return Answer(holding.token)
        if holding is not None or (self.readers and not shared) or not self._first(owner, shared):
            if wait:
                self.line.renew(owner, now + wait)
            return Answer(None, self._free_in(shared, now))
        self.line.leave(owner)
        if shared:
            self._read(owner, now + lease)
        else:
            self.last = max(self.last + 1, stamp)
            self.holding = Holding(owner, self.last, now + lease)
        return Answer(self.last)

    def extend(self, owner: str, token: int | None, *, shared: bool, now: int, lease: int) -> bool:
        """Let a lease that lives end no sooner than ``now + lease``."""
        self.prune(now)
        if shared:
            if owner in self.readers:
                self._read(owner, now + lease)
            return owner in self.readers
        if not self._has(owner, token):
            return False
        assert self.holding is not None
        self.holding = self.holding._replace(until=max(self.holding.until, now + lease))
        return True

    def release(
        self, owner: str, token: int | None, *, shared: bool, now: int
    ) -> tuple[bool, list[str]]:
        """Give a lease back and leave the line: whether there was one, and whose turn it is."""
        self.prune(now)
        held = self.readers.pop(owner, 0) > 0 if shared else self._has(owner, token)
        if held and not shared:
            self.holding = None
        waited = self.line.leave(owner)
        return held, self._called() if held or waited else []

    def look(self, owners: Sequence[str], *, now: int, wait: int) -> tuple[int, list[str]]:
        """Those ``owners`` wait still: when the lease in the way ends, and whose turn it is."""
        self.prune(now)
        for owner in owners:
            if owner not in self.readers and not self._has(owner, None):
                self.line.renew(owner, now + wait)
        head = next(iter(self.line.until), READER)
        return self._free_in(head.startswith(READER), now), self._called()

    def prune(self, now: int) -> None:
        """Drop what has lapsed."""
        if self.holding is not None and self.holding.until <= now:
            self.holding = None
        self.readers = _living(self.readers, now)
        self.line.prune(now)

    @property
    def idle(self) -> bool:
        """Whether nothing is left of it but the last token."""
        return self.holding is None and not self.readers and not self.line.until

    def _has(self, owner: str, token: int | None) -> bool:
        holding = self.holding
        return holding is not None and holding.owner == owner and token in (None, holding.token)

    def _read(self, owner: str, until: int) -> None:
        self.readers[owner] = max(until, self.readers.get(owner, 0))

    def _first(self, owner: str, shared: bool) -> bool:
        ahead = self.line.ahead_of(owner)
        return all(each.startswith(READER) for each in ahead) if shared else not ahead

    def _free_in(self, shared: bool, now: int) -> int:
        if self.holding is not None:
            return self.holding.until - now
        return max(self.readers.values()) - now if self.readers and not shared else 0

    def _called(self) -> list[str]:
        line = list(self.line.until)
        if self.holding is not None or not line:
            return []
        if not line[0].startswith(READER):
            return [] if self.readers else line[:1]
        writers = (at for at, each in enumerate(line) if not each.startswith(READER))
        return line[: next(writers, len(line))]


class SemaphoreState:
    """A number of permits, and who has them."""

    def __init__(self) -> None:
        self.holders: dict[str, int] = {}
        self.tokens: dict[str, int] = {}
        self.last = 0
        self.line = Waiters()

    def acquire(
        self, owner: str, permits: int, *, now: int, stamp: int, lease: int, wait: int
    ) -> Answer:
        """Have a permit until ``now + lease``; refused, wait until ``now + wait`` (0: do not)."""
        self.prune(now)
        if owner not in self.holders:
            free = permits - len(self.holders)
            if free <= len(self.line.ahead_of(owner)):
                if wait:
                    self.line.renew(owner, now + wait)
                return Answer(None, 0 if free > 0 else min(self.holders.values()) - now)
            self.last = self.tokens[owner] = max(self.last + 1, stamp)
            self.line.leave(owner)
        self.holders[owner] = max(now + lease, self.holders.get(owner, 0))
        return Answer(self.tokens[owner])

    def extend(self, owner: str, *, now: int, lease: int) -> bool:
        """Let a lease that lives end no sooner than ``now + lease``."""
        self.prune(now)
        if owner in self.holders:
            self.holders[owner] = max(now + lease, self.holders[owner])
        return owner in self.holders

    def release(self, owner: str, permits: int, *, now: int) -> tuple[bool, list[str]]:
        """Give a permit back and leave the line: whether there was one, and whose turn it is."""
        self.prune(now)
        held = self.holders.pop(owner, 0) > 0
        self.tokens.pop(owner, None)
        waited = self.line.leave(owner)
        return held, self._called(permits) if held or waited else []

    def look(
        self, owners: Sequence[str], permits: int, *, now: int, wait: int
    ) -> tuple[int, list[str]]:
        """Those ``owners`` wait still: when a lease ends, and whose turn it is."""
        self.prune(now)
        for owner in owners:
            if owner not in self.holders:
                self.line.renew(owner, now + wait)
        taken = len(self.holders) >= permits
        return min(self.holders.values()) - now if taken else 0, self._called(permits)

    def prune(self, now: int) -> None:
        """Drop what has lapsed."""
        self.holders = _living(self.holders, now)
        self.tokens = {owner: self.tokens[owner] for owner in self.holders}
        self.line.prune(now)

    @property
    def idle(self) -> bool:
        """Whether nothing is left of it but the last token."""
        return not self.holders and not self.line.until

    def _called(self, permits: int) -> list[str]:
        return list(self.line.until)[: max(0, permits - len(self.holders))]


def _living(until: dict[str, int], now: int) -> dict[str, int]:
    return {owner: deadline for owner, deadline in until.items() if deadline > now}
