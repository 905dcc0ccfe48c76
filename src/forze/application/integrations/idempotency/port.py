"""The idempotency port over any store.

What is decided about a record is decided in the store, by the transitions of ``record``. Here
is what surrounds them in this process: whose a claim is (``claims``), asking for it
(``asking``), keeping it up (``leases``), and how it ends (``endings``).
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from forze.application.contracts.deps import Resolver
from forze.application.contracts.idempotency import (
    Commit,
    IdempotencySnapshot,
    IdempotencySpec,
    IdempotencyStats,
)
from forze.application.contracts.introspection import ClaimView
from forze.application.integrations.idempotency.asking import AWAY, ask
from forze.application.integrations.idempotency.claims import (
    Claim,
    Identity,
    Phase,
    Scope,
    entered,
    this_task,
)
from forze.application.integrations.idempotency.endings import Endings
from forze.application.integrations.idempotency.function import payload_hash_of, result_of
from forze.application.integrations.idempotency.leases import Leases
from forze.application.integrations.idempotency.record import Answer, Busy, Completed, Granted
from forze.application.integrations.idempotency.store import IdempotencyStore
from forze.errors import (
    BackendTimeout,
    BackendUnavailable,
    IdempotencyInProgress,
    IdempotencyMismatch,
    ValidationError,
)

T = TypeVar("T")
C = TypeVar("C", bound=Claim)

_log = logging.getLogger("forze")


class _HeldClaim(Claim):
    """A claim as its block sees it. Implements ``IdempotencyClaim``."""

    __slots__ = ("endings",)

    endings: Endings

    async def complete(self, snapshot: IdempotencySnapshot, *, stands: bool = False) -> Commit:
        """The answer is final: stored, unless its status is not one that is."""
        _refuse_no_snapshot(snapshot)
        return await self.endings.answered(self, snapshot, stands=stands)


class StoredIdempotency:
    """Operations that run once per key, their records in ``store``. Implements
    ``IdempotencyPort``."""

    def __init__(self, store: IdempotencyStore, spec: IdempotencySpec, resolver: Resolver) -> None:
        self._store = store
        self._spec = spec
        self._resolver = resolver
        self._leases = Leases(spec, resolver)
        self._endings = Endings(spec, resolver, self._leases, self._count)
        self._turned_away: WeakKeyDictionary[asyncio.Task[Any], Identity] = WeakKeyDictionary()
        """What each task was refused last: it has nothing there to end."""
        self._away = False
        self._counts = dict.fromkeys(IdempotencyStats.__dataclass_fields__, 0)

    # begin, commit and fail are plain functions that return coroutines: whose call it is has
    # to be seen where it is called, also when the coroutine then runs as a task of its own.

    def begin(
        self, operation: str, key: str, payload_hash: str
    ) -> Coroutine[Any, Any, IdempotencySnapshot | None]:
        """The stored answer to give again, or None: run."""
        return self._begin(self._attempt(Claim, operation, key, payload_hash))

    def commit(
        self, operation: str, key: str, payload_hash: str, snapshot: IdempotencySnapshot
    ) -> Coroutine[Any, Any, Commit]:
        """Store the answer of what this task began; what became of it."""
        _refuse_no_snapshot(snapshot)
        claim = self._of_caller(operation, key, payload_hash)
        if claim is None:
            return self._unclaimed(operation, key)
        return self._endings.answered(claim, snapshot)

    def fail(self, operation: str, key: str, payload_hash: str) -> Coroutine[Any, Any, bool]:
        """Free the key of what this task began; whether it was freed."""
        return self._fail(self._of_caller(operation, key, payload_hash))

    @asynccontextmanager
    async def claim(self, operation: str, key: str, payload_hash: str) -> AsyncIterator[_HeldClaim]:
        """:meth:`begin` as a block that frees the key unless it was completed."""
        claim = self._attempt(_HeldClaim, operation, key, payload_hash, guarded=True)
        claim.endings = self._endings
        await self._begin(claim)
        try:
            yield claim
        except BaseException:
            claim.failing = True
            raise
        finally:
            await self._endings.closed((claim,))

    @asynccontextmanager
    async def scope(self) -> AsyncIterator[None]:
        """A block that owns the claims begun in it."""
        scope = Scope()
        try:
            with entered(scope):
                yield
        except BaseException:
            for claim in scope.claims:
                claim.failing = True
            raise
        finally:
            await self._endings.closed(scope.claims)

    async def run(
        self,
        operation: str,
        key: str,
        payload: object,
        function: Callable[..., Awaitable[T]],
        *args: Any,
        result: Any = None,
        **kwargs: Any,
    ) -> T:
        """``await function(*args, **kwargs)``, once per key."""
        if not callable(function):
            raise ValidationError(
                f"run takes a function and, after it, its arguments, not {function!r}",
                field="function",
            )
        codec = result_of(function, result)
        async with self.claim(operation, key, payload_hash_of(payload)) as claim:
            if claim.replay is not None:
                return codec.load(claim.replay)
            returned: Any = function(*args, **kwargs)
            # A function that is not async has had its effect: it counts like any other.
            value: T = await returned if inspect.isawaitable(returned) else returned
            await claim.complete(codec.dump(value))
            return value

    def stats(self) -> IdempotencyStats:
        """Counts since the port was made."""
        return IdempotencyStats(**self._counts)

    def open_claims(self) -> list[ClaimView]:
        """Operations under way in this process. Implements ``HoldsClaims``."""
        now, epoch, lease = time.monotonic(), time.time(), self._spec.lease.total_seconds()
        return [
            ClaimView(
                self._spec.name,
                claim.operation,
                claim.key,
                claim.generation,
                claim.phase.name.lower(),
                epoch - (now - claim.began),
                max(0.0, claim.kept_at + lease - now) if claim.generation else None,
                claim.takeover,
                claim.lost,
            )
            for claim in sorted(self._leases.claims.all(), key=lambda each: each.began)
        ]

    async def verify(self) -> None:
        """Compare what the store needs with what is there."""
        await self._store.check()

    # -- begin ---------------------------------------------------------------

    def _attempt(
        self,
        kind: Callable[..., C],
        operation: str,
        key: str,
        payload_hash: str,
        *,
        guarded: bool = False,
    ) -> C:
        given: object = payload_hash
        if not isinstance(given, str) or not given:
            raise ValidationError(
                f"the payload hash must be text that is not empty, not {given!r}",
                field="payload_hash",
            )
        identity = self._identity(operation, key)
        return kind(operation, key, payload_hash, identity, guarded=guarded)

    def _identity(self, operation: str, key: str) -> Identity:
        return self._store.place(), self._store.name(operation, key)

    async def _begin(self, claim: Claim) -> IdempotencySnapshot | None:
        claim.task = claim.task or asyncio.current_task()
        try:
            store = await claim.enter(self._store)
            answer = await ask(store, claim, self._spec)
        except AWAY as error:
            return self._without_store(claim, error)
        except BaseException:
            self._endings.free_apart(claim, doubtful=True)
            raise
        if self._away:
            self._away = False
            _log.info("idempotency %r: the store is back", self._spec.name)
        if isinstance(answer, Granted):
            self._granted(claim, answer)
            return None
        await claim.leave()
        return self._refused(claim, answer)

    def _granted(self, claim: Claim, answer: Granted) -> None:
        claim.generation = answer.generation
        claim.takeover = answer.how == "takeover"
        self._count("runs")
        if claim.takeover:
            self._count("takeovers")
        self._opened(claim, Phase.HELD)
        self._leases.keep_up(claim)

    def _opened(self, claim: Claim, phase: Phase) -> None:
        claim.phase = phase
        self._leases.claims.add(claim)
        self._endings.with_owner(claim)

    def _refused(self, claim: Claim, answer: Answer) -> IdempotencySnapshot:
        claim.phase = Phase.ENDED
        if isinstance(answer, Completed):
            self._count("replays")
            claim.replay = answer.snapshot
            return answer.snapshot
        if claim.task is not None:
            self._turned_away[claim.task] = claim.identity
        if isinstance(answer, Busy):
            self._count("refusals")
            left = timedelta(milliseconds=max(1, answer.lease_left_ms))
            raise IdempotencyInProgress(
                operation=claim.operation,
                key=claim.key,
                retry_after=min(left, self._spec.retry_hint),
            )
        self._count("mismatches")
        raise IdempotencyMismatch(operation=claim.operation, key=claim.key)

    def _without_store(
        self, claim: Claim, error: BackendTimeout | BackendUnavailable
    ) -> IdempotencySnapshot | None:
        if claim.doubtful or error.outcome == "unknown":
            self._endings.free_apart(claim, doubtful=True)
        else:
            self._leases.forget(claim)
        if self._spec.fail == "closed":
            raise BackendUnavailable(
                f"idempotency {self._spec.name!r}: {claim.operation} was not run, because its "
                f"records cannot be reached; retry it with the same key. {error}",
                backend=error.backend,
            ) from error
        self._count("unprotected")
        if not self._away:
            self._away = True
            _log.warning(
                "idempotency %r: the store is away, operations run without protection: %s",
                self._spec.name,
                error,
            )
        self._opened(claim, Phase.UNPROTECTED)
        return None

    # -- the end -------------------------------------------------------------

    def _of_caller(self, operation: str, key: str, payload_hash: str) -> Claim | None:
        identity, task = self._identity(operation, key), this_task()
        refused = task is not None and self._turned_away.get(task) == identity
        return self._leases.claims.of_caller(identity, payload_hash, refused=refused)

    async def _unclaimed(self, operation: str, key: str) -> Commit:
        _log.warning(
            "idempotency %r: an answer of %s for key %r was not stored, because this task has no "
            "open claim on it",
            self._spec.name,
            operation,
            key,
        )
        return Commit.UNCLAIMED

    async def _fail(self, claim: Claim | None) -> bool:
        return claim is not None and await self._endings.failed(claim)

    def _count(self, what: str) -> None:
        self._counts[what] += 1


def _refuse_no_snapshot(snapshot: object) -> None:
    if not isinstance(snapshot, IdempotencySnapshot):
        raise ValidationError(
            "an answer is an IdempotencySnapshot(status_code, content_type, body), not "
            f"{type(snapshot).__name__}",
            field="snapshot",
        )
