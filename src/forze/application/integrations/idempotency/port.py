"""The idempotency port over any store: who holds which claim, how long, and what becomes of it.

What is decided about a record is decided in the store, by the transitions of ``record``. Here
is what surrounds them: the claim's owner and generation follow the request, the lease is kept
up, waiting, cancellation at any await, a store that is away, transactions.

A claim is kept up by a timer, which costs a request that is done within a third of the lease
nothing but the timer. Whatever must reach the store after its request has gone (the answer,
the release) is sent by a task of its own, again and again until the lease ends.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from contextvars import Context
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
from forze.application.contracts.tenancy import current_deadline, current_tenant
from forze.application.contracts.transaction import Outcome, Transaction, open_transactions
from forze.application.integrations.idempotency.claims import (
    Claim,
    Claims,
    Identity,
    Phase,
    Scope,
    entered,
    this_task,
)
from forze.application.integrations.idempotency.function import payload_hash_of, result_of
from forze.application.integrations.idempotency.record import (
    Answer,
    Busy,
    Completed,
    Granted,
)
from forze.application.integrations.idempotency.store import IdempotencyStore
from forze.errors import (
    BackendError,
    BackendTimeout,
    BackendUnavailable,
    FencedOut,
    ForzeError,
    IdempotencyInProgress,
    IdempotencyMismatch,
    ValidationError,
)

T = TypeVar("T")
C = TypeVar("C", bound=Claim)

_ASK_AGAIN_WITHIN_SECONDS = 1.0
"""A lost reply is asked for again, unless losing it took this long: then the store is away."""

_FREEING_SECONDS = 1.0
"""How long the end of a block waits for its key to be free, before that goes on by itself."""

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.05, 1.0

_AWAY = (BackendTimeout, BackendUnavailable)
_HELD = (Phase.HELD, Phase.ENLISTED)

_log = logging.getLogger("forze")


class _HeldClaim(Claim):
    """A claim as its block sees it. Implements ``IdempotencyClaim``."""

    __slots__ = ("port",)

    port: StoredIdempotency

    async def complete(self, snapshot: IdempotencySnapshot) -> Commit:
        """The answer is final: stored, unless its status is not one that is."""
        return await self.port.conclude(self, snapshot)


class StoredIdempotency:
    """Operations that run once per key, their records in ``store``. Implements
    ``IdempotencyPort``."""

    def __init__(self, store: IdempotencyStore, spec: IdempotencySpec, ctx: Resolver) -> None:
        self._store = store
        self._spec = spec
        self._ctx = ctx
        self._kept = max(spec.ttl, spec.lease)
        """How long a record is kept while it is pending."""
        self._claims = Claims()
        self._turned_away: WeakKeyDictionary[asyncio.Task[Any], Identity] = WeakKeyDictionary()
        """What each task was refused last: it has nothing there to end."""
        self._away = False
        self._counts = dict.fromkeys(IdempotencyStats.__dataclass_fields__, 0)

    # -- the port ------------------------------------------------------------
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
        return self.conclude(claim, snapshot)

    def fail(self, operation: str, key: str, payload_hash: str) -> Coroutine[Any, Any, bool]:
        """Free the key of what this task began; whether it was freed."""
        return self._fail(self._of_caller(operation, key, payload_hash))

    @asynccontextmanager
    async def claim(self, operation: str, key: str, payload_hash: str) -> AsyncIterator[_HeldClaim]:
        """:meth:`begin` as a block that frees the key unless it was completed."""
        claim = self._attempt(_HeldClaim, operation, key, payload_hash, guarded=True)
        claim.port = self
        await self._begin(claim)
        try:
            yield claim
        except BaseException:
            claim.failing = True
            raise
        finally:
            await self._close((claim,))

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
            await self._close(tuple(scope.claims))

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
        codec = result_of(function, result)
        async with self.claim(operation, key, payload_hash_of(payload)) as claim:
            if claim.replay is not None:
                return codec.load(claim.replay)
            value = await function(*args, **kwargs)
            await claim.complete(codec.dump(value))
            return value

    def stats(self) -> IdempotencyStats:
        """Counts since the port was made."""
        return IdempotencyStats(**self._counts)

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
        name = self._store.name(operation, key)
        return kind(
            operation, key, payload_hash, name=name, tenant=current_tenant(), guarded=guarded
        )

    async def _begin(self, claim: Claim) -> IdempotencySnapshot | None:
        claim.task = claim.task or asyncio.current_task()
        try:
            store = await claim.enter(self._store)
            answer = await self._answer(store, claim)
        except _AWAY as error:
            return self._without_store(claim, error)
        except BaseException:
            self._free_apart(claim)
            raise
        self._reached()
        if isinstance(answer, Granted):
            self._granted(claim, answer)
            return None
        await claim.leave()
        return self._refused(claim, answer)

    async def _answer(self, store: IdempotencyStore, claim: Claim) -> Answer:
        answer = await self._ask(store, claim)
        until = self._patience()
        if not isinstance(answer, Busy) or until <= time.monotonic():
            return answer
        async with store.watch(claim.name) as changes:
            answer = await self._ask(store, claim)
            while isinstance(answer, Busy) and (left := until - time.monotonic()) > 0:
                await changes.wait(min(left, answer.lease_left_ms / 1000 + 0.001))
                if time.monotonic() < until:
                    answer = await self._ask(store, claim)
        return answer

    def _patience(self) -> float:
        """Until when to wait for another's answer, on the monotonic clock."""
        if self._spec.wait is None:
            return 0.0
        until = time.monotonic() + self._spec.wait.total_seconds()
        deadline = current_deadline()
        return until if deadline is None else min(until, deadline)

    async def _ask(self, store: IdempotencyStore, claim: Claim) -> Answer:
        """Ask, and once more where the reply was lost: one attempt gets one answer."""
        asked = time.monotonic()
        try:
            return await self._ask_once(store, claim)
        except _AWAY as error:
            if error.outcome != "unknown":
                raise
            claim.doubtful = True
            if time.monotonic() - asked > _ASK_AGAIN_WITHIN_SECONDS:
                raise
        return await self._ask_once(store, claim)

    def _ask_once(self, store: IdempotencyStore, claim: Claim) -> Awaitable[Answer]:
        return store.claim(
            claim.name, claim.owner, claim.payload_hash, self._spec.lease, self._kept
        )

    def _granted(self, claim: Claim, answer: Granted) -> None:
        claim.generation = answer.generation
        claim.takeover = answer.how == "takeover"
        claim.phase = Phase.HELD
        self._count("runs")
        if claim.takeover:
            self._count("takeovers")
        self._opened(claim)
        self._keep_up(claim)

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
            self._free_apart(claim)
        else:
            self._ctx.spawn(claim.leave(), name="forze-idempotency-leave")
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
        claim.phase = Phase.UNPROTECTED
        self._opened(claim)
        return None

    def _reached(self) -> None:
        if self._away:
            self._away = False
            _log.info("idempotency %r: the store is back", self._spec.name)

    # -- while it is open ----------------------------------------------------

    def _opened(self, claim: Claim) -> None:
        self._claims.add(claim)
        if claim.guarded or claim.scope is not None or claim.task is None:
            return

        def ended(task: asyncio.Task[Any]) -> None:
            self._owner_ended(claim, cancelled=task.cancelled())

        claim.watcher = ended
        claim.task.add_done_callback(ended, context=Context())

    def _owner_ended(self, claim: Claim, *, cancelled: bool) -> None:
        if claim.phase is Phase.UNPROTECTED:
            self._ended(claim)
        elif claim.phase is Phase.HELD and cancelled:
            self._free_apart(claim)
        elif claim.phase is Phase.HELD:
            # Crashed, or begun for another task to finish: the lease decides.
            self._later(claim, self._spec.max_hold.total_seconds(), self._forget)

    def _keep_up(self, claim: Claim) -> None:
        self._later(claim, self._spec.lease.total_seconds() / 3, self._due)

    def _later(self, claim: Claim, seconds: float, call: Callable[[Claim], None]) -> None:
        if claim.timer is not None:
            claim.timer.cancel()
        loop = asyncio.get_running_loop()
        claim.timer = loop.call_later(seconds, call, claim, context=Context())

    def _due(self, claim: Claim) -> None:
        if time.monotonic() - claim.began >= self._spec.max_hold.total_seconds():
            _log.warning(
                "idempotency %r: %s held its key %r for max_hold (%s) without an answer; the "
                "lease is no longer kept up",
                self._spec.name,
                claim.operation,
                claim.key,
                self._spec.max_hold,
            )
            self._forget(claim)
        else:
            self._ctx.spawn(self._beat(claim), name="forze-idempotency-beat", wait=False)

    async def _beat(self, claim: Claim) -> None:
        if claim.phase not in _HELD:
            return
        self._keep_up(claim)
        assert claim.store is not None
        try:
            held = await claim.store.beat(
                claim.name, claim.owner, claim.generation, self._spec.lease, self._kept
            )
        except ForzeError as error:
            _log.debug("idempotency %r: a lease was not kept up: %s", self._spec.name, error)
            if not isinstance(error, BackendError):
                _stop(claim)  # the client was closed, or may not: it will not work later either
            return
        if not held and claim.phase in _HELD:
            claim.lost = True
            _stop(claim)
            _log.warning(
                "idempotency %r: the claim of %s on key %r lapsed and is another's by now",
                self._spec.name,
                claim.operation,
                claim.key,
            )

    def _ended(self, claim: Claim) -> None:
        claim.phase = Phase.ENDED
        _stop(claim)
        self._claims.remove(claim)
        if claim.watcher is not None and claim.task is not None:
            claim.task.remove_done_callback(claim.watcher)
            claim.watcher = None

    def _forget(self, claim: Claim) -> None:
        self._ended(claim)
        self._ctx.spawn(claim.leave(), name="forze-idempotency-leave")

    # -- the end -------------------------------------------------------------

    def _of_caller(self, operation: str, key: str, payload_hash: str) -> Claim | None:
        identity = current_tenant(), self._store.name(operation, key)
        task = this_task()
        refused = task is not None and self._turned_away.get(task) == identity
        return self._claims.of_caller(identity, payload_hash, adopt=not refused)

    async def _unclaimed(self, operation: str, key: str) -> Commit:
        _log.warning(
            "idempotency %r: an answer of %s for key %r was not stored, because this task has no "
            "open claim on it",
            self._spec.name,
            operation,
            key,
        )
        return Commit.UNCLAIMED

    async def conclude(self, claim: Claim, snapshot: IdempotencySnapshot) -> Commit:
        """End ``claim`` with an answer; see ``IdempotencyPort.commit``."""
        _refuse_no_snapshot(snapshot)
        if claim.phase in (Phase.ENLISTED, Phase.WRITTEN):
            return Commit.ENLISTED
        if claim.phase is not Phase.HELD:
            self._ended(claim)
            return Commit.UNCLAIMED
        if not self._spec.stores(snapshot.status_code):
            await self._free(claim)
            return Commit.RELEASED
        snapshot = self._spec.kept(snapshot)
        outer = open_transactions()
        if outer:
            return await self._enlist(claim, snapshot, outer[0])
        return await self._store_answer(claim, snapshot)

    async def _store_answer(self, claim: Claim, snapshot: IdempotencySnapshot) -> Commit:
        stored = await self._to_the_end(claim, self._completing(claim, snapshot))
        if stored is None:
            self._count("deferred")
            return Commit.DEFERRED
        return Commit.STORED if stored else Commit.FENCED_OUT

    def _completing(
        self, claim: Claim, snapshot: IdempotencySnapshot
    ) -> Callable[[], Awaitable[bool]]:
        store = claim.store
        assert store is not None

        async def complete() -> bool:
            stored = await store.complete(
                claim.name, claim.owner, claim.generation, snapshot, self._spec.ttl
            )
            if not stored:
                self._fenced_out(claim)
            return stored

        return complete

    def _fenced_out(self, claim: Claim) -> None:
        claim.lost = True
        self._count("fenced_out")
        _log.warning(
            "idempotency %r: %s finished under key %r after its lease had lapsed and another had "
            "taken over; its answer was not stored",
            self._spec.name,
            claim.operation,
            claim.key,
        )

    async def _fail(self, claim: Claim | None) -> bool:
        if claim is None:
            return False
        claim.failing = True
        if claim.phase is Phase.HELD:
            return await self._free(claim)
        if claim.phase is Phase.UNPROTECTED:
            self._ended(claim)
        return False

    async def _free(self, claim: Claim) -> bool:
        return bool(await self._to_the_end(claim, self._releasing(claim)))

    def _free_apart(self, claim: Claim) -> None:
        """Free what the claim may have, whatever became of its request."""
        self._ended(claim)
        if claim.store is not None:
            self._to_the_end(claim, self._releasing(claim))

    def _releasing(self, claim: Claim) -> Callable[[], Awaitable[bool]]:
        store, ttl = claim.store, self._spec.ttl
        assert store is not None
        return lambda: store.release(claim.name, claim.owner, claim.generation, ttl)

    async def _close(self, claims: tuple[Claim, ...]) -> None:
        """The end of a block: what is still held is freed, what follows a transaction stays."""
        freeing = set()
        for claim in claims:
            claim.closed = True
            if claim.phase is Phase.HELD:
                freeing.add(self._to_the_end(claim, self._releasing(claim)))
            elif claim.phase is Phase.UNPROTECTED:
                self._ended(claim)
        if freeing:
            await asyncio.wait(freeing, timeout=_FREEING_SECONDS)

    def _to_the_end(
        self, claim: Claim, step: Callable[[], Awaitable[bool]]
    ) -> asyncio.Future[bool | None]:
        """End the claim by ``step``, which goes on whatever becomes of the caller.

        The future has its result, or None as soon as it turns out that the store is away.
        """
        self._ended(claim)
        first: asyncio.Future[bool | None] = asyncio.get_running_loop().create_future()
        self._ctx.spawn(self._persist(claim, step, first), name="forze-idempotency-end")
        return first

    async def _persist(
        self,
        claim: Claim,
        step: Callable[[], Awaitable[bool]],
        first: asyncio.Future[bool | None],
    ) -> None:
        until = time.monotonic() + self._spec.lease.total_seconds()
        pause = _FIRST_PAUSE_SECONDS
        try:
            while True:
                try:
                    return _tell(first, await step())
                except ForzeError as error:
                    _tell(first, None)
                    if not isinstance(error, _AWAY) or time.monotonic() + pause >= until:
                        _log.warning(
                            "idempotency %r: the end of %s under key %r could not be written: %s",
                            self._spec.name,
                            claim.operation,
                            claim.key,
                            error,
                        )
                        return None
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        finally:
            _tell(first, None)
            await claim.leave()

    # -- transactions --------------------------------------------------------

    async def _enlist(
        self, claim: Claim, snapshot: IdempotencySnapshot, outermost: Transaction
    ) -> Commit:
        assert claim.store is not None
        inside = claim.store.transaction()
        if inside is None:
            claim.phase = Phase.ENLISTED
            outermost.participants[claim] = _Following(self, claim, snapshot)
            return Commit.ENLISTED
        if not await self._completing(claim, snapshot)():
            self._forget(claim)
            raise FencedOut(resource=claim.operation, id=claim.key, token=claim.generation)
        claim.phase = Phase.WRITTEN
        _stop(claim)
        inside.participants[claim] = _Following(self, claim, None)
        return Commit.ENLISTED

    async def follow(
        self, claim: Claim, snapshot: IdempotencySnapshot | None, outcome: Outcome
    ) -> None:
        """The transaction that ``claim`` was enlisted in has ended."""
        if outcome is Outcome.COMMITTED and snapshot is not None and not claim.failing:
            await self._store_answer(claim, snapshot)
        elif outcome is Outcome.COMMITTED and snapshot is None:
            self._forget(claim)
        elif outcome is Outcome.UNKNOWN:
            # It may stand: freeing the key could run it twice, at once. The lease decides.
            self._forget(claim)
        elif claim.failing or claim.closed or claim.abandoned:
            await self._free(claim)
        else:
            claim.phase = Phase.HELD
            self._keep_up(claim)

    def _count(self, what: str) -> None:
        self._counts[what] += 1


class _Following:
    """A claim whose answer follows a transaction. Implements ``TransactionParticipant``."""

    def __init__(
        self, port: StoredIdempotency, claim: Claim, snapshot: IdempotencySnapshot | None
    ) -> None:
        self._port, self._claim, self._snapshot = port, claim, snapshot

    async def before_commit(self) -> None:
        """Nothing is left to do."""

    def check_commit(self) -> None:
        """Nothing stands against it."""

    async def after(self, outcome: Outcome, error: BackendError | None) -> None:
        """Store the answer, or go on holding the key."""
        await self._port.follow(self._claim, self._snapshot, outcome)


def _stop(claim: Claim) -> None:
    if claim.timer is not None:
        claim.timer.cancel()
        claim.timer = None


def _tell(first: asyncio.Future[bool | None], result: bool | None) -> None:
    if not first.done():
        first.set_result(result)


def _refuse_no_snapshot(snapshot: object) -> None:
    if not isinstance(snapshot, IdempotencySnapshot):
        raise ValidationError(
            f"commit takes an IdempotencySnapshot, not {type(snapshot).__name__}",
            field="snapshot",
        )
