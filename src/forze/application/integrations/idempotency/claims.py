"""Open claims, and whose they are.

A claim is its requester's: the task that called ``begin``, noted when it is called and not
when it runs, so that ``wait_for(port.begin(...))`` belongs to the caller; and the tasks that
this one starts afterwards, so that a handler run by ``wait_for(handler())`` can end it. A context
variable names the claims of a context; the contexts of such tasks are copies. Where a claim is
begun in a copy, and ended outside, a :class:`Scope` around both owns it: one mutable object
that all copies share. Two requests that overlap in one process have claims of their own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Hashable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from contextvars import ContextVar
from enum import Enum, auto
from secrets import token_hex
from typing import Any, TypeAlias
from weakref import ref

from forze.application.contracts.idempotency import IdempotencySnapshot
from forze.application.integrations.idempotency.store import IdempotencyStore

Identity: TypeAlias = tuple[Hashable, str]
"""Where a record is kept (each tenant may have a server of its own), and its name."""


class Phase(Enum):
    """Where a claim stands in this process."""

    ASKING = auto()
    HELD = auto()
    ENLISTED = auto()
    """Completed, to be stored when the open transaction has committed."""
    WRITTEN = auto()
    """Completed and written inside the open transaction, which has the record locked."""
    UNPROTECTED = auto()
    """Runs without a claim, by ``fail="open"``."""
    ENDED = auto()


class Scope:
    """Owns the claims begun in it."""

    __slots__ = ("claims", "closed")

    def __init__(self) -> None:
        self.claims: set[Claim] = set()
        self.closed = False


_scope: ContextVar[Scope | None] = ContextVar("forze_idempotency_scope", default=None)
_line: ContextVar[tuple[ref[Claim], ...]] = ContextVar("forze_idempotency_line", default=())
"""The claims begun in this context, and in those it was copied from."""


def current_scope() -> Scope | None:
    """The innermost open scope of this context."""
    scope = _scope.get()
    return None if scope is None or scope.closed else scope


@contextmanager
def entered(scope: Scope) -> Iterator[None]:
    """Make ``scope`` the innermost one for the length of a ``with`` block."""
    token = _scope.set(scope)
    try:
        yield
    finally:
        scope.closed = True
        _scope.reset(token)


def this_task() -> asyncio.Task[Any] | None:
    """The running task; None in a thread without an event loop."""
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


class Claim:
    """One attempt at a key, from ``begin`` to its end. ``owner`` is the attempt's own id."""

    __slots__ = (
        "__weakref__", "_hold", "began", "closed", "doubtful", "failing", "generation", "guarded",
        "identity", "kept_at", "key", "lost", "operation", "owner", "payload_hash", "phase",
        "replay", "scope", "store", "takeover", "task", "timer", "watcher",
    )  # fmt: skip

    def __init__(
        self,
        operation: str,
        key: str,
        payload_hash: str,
        identity: Identity,
        *,
        guarded: bool = False,
    ) -> None:
        self.operation, self.key, self.payload_hash = operation, key, payload_hash
        self.identity = identity
        self.guarded = guarded
        """Whether a block of its own ends it."""
        self.scope, self.task = current_scope(), this_task()
        self.owner = token_hex(16)
        self.began = self.kept_at = time.monotonic()
        self.phase = Phase.ASKING
        self.generation = 0
        self.takeover = self.lost = self.doubtful = False
        self.failing = self.closed = False
        self.replay: IdempotencySnapshot | None = None
        self.store: IdempotencyStore | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.watcher: Any = None
        self._hold: AbstractAsyncContextManager[IdempotencyStore] | None = None
        _line.set((*(ref(each) for each in _of_line()), ref(self)))

    @property
    def name(self) -> str:
        """The record's name."""
        return self.identity[1]

    @property
    def bare(self) -> bool:
        """Whether no block ends it."""
        return not self.guarded and self.scope is None

    @property
    def abandoned(self) -> bool:
        """Whether nobody is left to end it but by finding it."""
        return self.bare and (self.task is None or self.task.done())

    async def enter(self, store: IdempotencyStore) -> IdempotencyStore:
        """Hold on to the store that is reached now."""
        hold = store.hold()
        self.store = await hold.__aenter__()
        self._hold = hold
        return self.store

    async def leave(self) -> None:
        """Let go of the store."""
        hold, self._hold = self._hold, None
        if hold is not None:
            await hold.__aexit__(None, None, None)


def _of_line() -> list[Claim]:
    claims = (each() for each in _line.get())
    return [each for each in claims if each is not None and each.phase is not Phase.ENDED]


class Claims:
    """The open claims of one port in this process."""

    def __init__(self) -> None:
        self._open: dict[Identity, list[Claim]] = {}

    def add(self, claim: Claim) -> None:
        """Open; its scope owns it where there is one."""
        if claim.scope is not None and claim.scope.closed:
            claim.scope = None
        if claim.scope is not None:
            claim.scope.claims.add(claim)
        self._open.setdefault(claim.identity, []).append(claim)

    def all(self) -> list[Claim]:
        """Each of them."""
        return [claim for among in self._open.values() for claim in among]

    def remove(self, claim: Claim) -> None:
        """It has ended."""
        if claim.scope is not None:
            claim.scope.claims.discard(claim)
        among = self._open.get(claim.identity)
        if among is not None and claim in among:
            among.remove(claim)
            if not among:
                del self._open[claim.identity]

    def of_caller(self, identity: Identity, payload_hash: str, *, refused: bool) -> Claim | None:
        """The claim that the caller may end; None where there is none, or no telling.

        One that this task began; unless it was ``refused``, which means that any other is
        another's: the only one of its scope, the last one begun before it was started, the only
        one whose requester has ended, as a task has that was started just to begin.
        """
        found = [c for c in self._open.get(identity, ()) if c.payload_hash == payload_hash]
        task, scope, line = this_task(), current_scope(), _of_line()
        own = [c for c in found if task is not None and c.task is task]
        if refused:
            return _last(own)
        return (
            _last([c for c in own if c.scope is scope])
            or _only([c for c in found if scope is not None and c.scope is scope])
            or _last(own)
            or _last([c for c in found if c in line])
            or _only([c for c in found if scope is None and c.abandoned])
        )


def _last(claims: Sequence[Claim]) -> Claim | None:
    return claims[-1] if claims else None


def _only(claims: Sequence[Claim]) -> Claim | None:
    return claims[0] if len(claims) == 1 else None
